import DMA
import IOMMUInterface
import IOMMUs
import VirtioTestKit

/// The TCE table: one for everything behind the bridge, and exact at once.
final class TCEModelUnit: ModelUnit {
  private let unit: TCETable
  let span: UInt64
  let window: ClosedRange<UInt64>
  private let first: UInt64
  private var seen: UInt64 = 0

  /// Buffers' device addresses are guest-physical ones too, so that the one taken for the other shows.
  init(_ world: World, _ random: inout SeededGenerator) {
    let isLarge = random.chance(1, in: 3)
    span = isLarge ? 16 : 1
    let data = world.base >> 12
    first = data - 16 * UInt64(World.functions)
    window = data...data + 31
    unit = TCETable(
      start: DMAAddress(first << 12), pages: (16 * World.functions + 32) / Int(span), pageShift: isLarge ? 16 : 12)
  }

  var iommu: any IOMMU & AddressTranslation { unit }
  func control(_ function: Int) -> UInt64 { first + 16 * UInt64(function) }
  var sharesTable: Bool { true }
  func table(_ function: Int) -> Int { 0 }
  func set(_ table: Int, _ page: UInt64, _ entry: NaiveModel.Entry?) {
    try? unit.put(DMAAddress(page << 12), entry.map { $0.page << 12 | UInt64($0.permissions.rawValue) } ?? 0)
  }
  func complaint(expecting fault: DMAFault?, from requester: RequesterID) -> String? {
    defer { seen = unit.faults }
    return complaint(unit.faults - seen, fault)
  }
}

/// sun4u's IOMMU: a buffer of entries in guest memory, remembered until a page is flushed. It has no write-only pages.
final class Sun4uModelUnit: ModelUnit {
  private let unit: Sun4uIOMMU
  private let world: World
  let span: UInt64
  let window: ClosedRange<UInt64>
  private let first: UInt64
  private var seen: UInt64 = 0

  init(_ world: World, _ random: inout SeededGenerator) {
    self.world = world
    let isLarge = random.chance(1, in: 3)
    span = isLarge ? 16 : 2
    first = 0x10_0000 - 1024 * span
    // Up to the last address below 4 GiB.
    window = 0x10_0000 - 32...0xF_FFFF
    unit = Sun4uIOMMU(world.memory)
    unit.write(World.tables, to: .base)
    unit.write(isLarge ? 5 : 1, to: .control)
  }

  var iommu: any IOMMU & AddressTranslation { unit }
  var remembers: Bool { true }
  func control(_ function: Int) -> UInt64 { first + 16 * UInt64(function) }
  var sharesTable: Bool { true }
  func table(_ function: Int) -> Int { 0 }
  func set(_ table: Int, _ page: UInt64, _ entry: NaiveModel.Entry?) {
    let word = entry.map { 1 << 63 | $0.page << 12 | ($0.permissions.contains(.write) ? 2 : 0) } ?? 0
    world.write(word, bigEndian: true, at: World.tables + (page - first) / span * 8)
  }
  func invalidate(
    _ table: Int, _ pages: ClosedRange<UInt64>, _ random: inout SeededGenerator
  ) -> [(table: Int, pages: ClosedRange<UInt64>)] {
    for page in stride(from: pages.lowerBound, through: pages.upperBound, by: Int(span)) {
      unit.write(page << 12 | UInt64.random(in: 0..<4096, using: &random), to: .flush)
    }
    return [(0, pages)]
  }
  func complaint(expecting fault: DMAFault?, from requester: RequesterID) -> String? {
    defer { seen = unit.faults }
    return complaint(unit.faults - seen, fault)
  }
}

/// Mappings by number, made by hand: each function has its own, and they are exact at once.
final class PageModelUnit: ModelUnit {
  private let unit = PageIOMMU()
  private var requesters: [Int: RequesterID] = [:]
  private var entries: [Int: [UInt64: NaiveModel.Entry]] = [:]
  let window: ClosedRange<UInt64>
  private let first: UInt64
  private var seen = 0

  /// Buffers are at the very top of the address space, or where memory is too.
  init(_ world: World, _ random: inout SeededGenerator) {
    window =
      random.chance(1, in: 2) ? UInt64.max >> 12 - 31...UInt64.max >> 12 : world.base >> 12...world.base >> 12 + 31
    first = window.lowerBound - 64
  }

  var iommu: any IOMMU & AddressTranslation { unit }
  var span: UInt64 { 1 }
  func control(_ function: Int) -> UInt64 { first + 16 * UInt64(function) }
  var sharesTable: Bool { false }
  func table(_ function: Int) -> Int { function }
  func attach(_ function: Int, _ requester: RequesterID) {
    if let old = requesters[function], old != requester { unit.unmapAll(old) }
    requesters[function] = requester
    build(function)
  }
  func set(_ table: Int, _ page: UInt64, _ entry: NaiveModel.Entry?) {
    entries[table, default: [:]][page] = entry
    build(table)
  }
  private func build(_ table: Int) {
    guard let requester = requesters[table] else { return }
    unit.replaceAll(
      requester,
      with: (entries[table] ?? [:]).sorted { $0.key < $1.key }.map {
        GuestRun(
          first: DMAAddress($0.key << 12), last: DMAAddress($0.key << 12 | 4095),
          guest: GuestAddress($0.value.page << 12),
          permissions: $0.value.permissions)
      })
  }
  func complaint(expecting fault: DMAFault?, from requester: RequesterID) -> String? {
    let new = unit.faults.dropFirst(seen)
    seen += new.count
    if new.map(\.fault) == (fault.map { [$0] } ?? []), new.allSatisfy({ $0.requester == requester }) { return nil }
    return
      "reported were \(Array(new)), where it should have been \(fault.map { "\($0) of \(requester)" } ?? "nothing")"
  }
}
