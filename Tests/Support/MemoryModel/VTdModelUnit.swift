import DMA
import IOMMUInterface
import IOMMUs
import VirtioTestKit

/// VT-d, with tables written bit by bit as its specification draws them. What they say is remembered until it is
/// invalidated.
final class VTdModelUnit: ModelUnit {
  private let unit: VTdUnit
  private let world: World
  private let levels: Int
  private let hasLargePages: Bool
  let remembersAbsence: Bool
  let sharesTable: Bool
  let window: ClosedRange<UInt64>
  /// Pages of the region that large pages may be mapped in.
  static let large: UInt64 = 1 << 18
  private var nextPage: UInt64
  private var tables: [Int: UInt64] = [:]
  private let queue: UInt64
  private var tail: UInt64 = 0
  private let status: UInt64

  init(_ world: World, _ random: inout SeededGenerator) {
    self.world = world
    let isWide = random.chance(1, in: 2)
    levels = isWide && random.chance(2, in: 3) ? 4 : 3
    hasLargePages = random.chance(2, in: 3)
    remembersAbsence = random.chance(1, in: 3)
    sharesTable = random.chance(1, in: 3)
    // Where memory is too, or up to the last address of the width.
    let last: UInt64 = 1 << (levels == 4 ? 36 : 27) - 1
    window = random.chance(1, in: 3) ? last - 31...last : world.base >> 12...world.base >> 12 + 31
    unit = VTdUnit(
      world.memory,
      options: VTdOptions(
        addressWidth: isWide ? 48 : 39, hasLargePages: hasLargePages, hasCachingMode: remembersAbsence,
        faultRecords: Int.random(in: 2...8, using: &random))
    ) { _ in }
    queue = World.tables + 4096
    status = World.tables + 2 * 4096
    nextPage = World.tables + 3 * 4096
    unit.write(0, at: 0x88, width: 8)
    unit.write(queue, at: 0x90, width: 8)
    unit.write(World.tables, at: 0x20, width: 8)
    unit.write(1 << 30, at: 0x18, width: 4)
    unit.write(1 << 31 | 1 << 26, at: 0x18, width: 4)
  }

  var iommu: any IOMMU & AddressTranslation { unit }
  var span: UInt64 { 1 }
  var remembers: Bool { true }
  func control(_ function: Int) -> UInt64 { 0x8_0000 + 16 * UInt64(function) }
  func table(_ function: Int) -> Int { sharesTable ? 0 : function }
  private func domain(_ table: Int) -> UInt64 { UInt64(table) + 7 }

  private func page() -> UInt64 {
    precondition(nextPage < World.tables + UInt64(World.tableBytes), "no room for another table")
    defer { nextPage += 4096 }
    return nextPage
  }

  private func root(_ table: Int) -> UInt64 {
    if let root = tables[table] { return root }
    let root = page()
    tables[table] = root
    return root
  }

  func attach(_ function: Int, _ requester: RequesterID) {
    let rootEntry = World.tables + UInt64(requester.bus) * 16
    if world.word(at: rootEntry) & 1 == 0 { world.write(page() | 1, at: rootEntry) }
    let at = world.word(at: rootEntry) & ~0xFFF + UInt64(requester.rawValue & 255) * 16
    world.write((levels == 4 ? 2 : 1) | domain(table(function)) << 8, at: at + 8)
    world.write(root(table(function)) | 1, at: at)
    // The context that was there before, if there was one.
    unit.write(1 << 63 | 1 << 61, at: 0x28, width: 8)
  }

  private func put(_ table: Int, _ page: UInt64, level: Int, _ word: UInt64) {
    var at = root(table)
    for l in stride(from: levels, to: level, by: -1) {
      let entry = at + (page >> UInt64(9 * (l - 1)) & 511) * 8
      if world.word(at: entry) & 3 == 0 { world.write(self.page() | 3, at: entry) }
      at = world.word(at: entry) & 0x000F_FFFF_FFFF_F000
    }
    world.write(word, at: at + (page >> UInt64(9 * (level - 1)) & 511) * 8)
  }

  func set(_ table: Int, _ page: UInt64, _ entry: NaiveModel.Entry?) {
    put(table, page, level: 1, entry.map { $0.page << 12 | UInt64($0.permissions.rawValue) } ?? 0)
  }

  func setLarge(_ table: Int, _ page: UInt64, _ entry: NaiveModel.Entry?) -> Bool {
    guard hasLargePages else { return false }
    put(table, page, level: 2, entry.map { $0.page << 12 | 1 << 7 | UInt64($0.permissions.rawValue) } ?? 0)
    return true
  }

  // MARK: Invalidation

  func invalidate(
    _ table: Int, _ pages: ClosedRange<UInt64>, _ random: inout SeededGenerator
  ) -> [(table: Int, pages: ClosedRange<UInt64>)] {
    let kind = UInt64.random(in: 1...3, using: &random)
    var concerned = pages
    var order: UInt64 = 0
    if kind == 3 {
      while pages.lowerBound >> order != pages.upperBound >> order { order += 1 }
      concerned = pages.lowerBound & ~(1 << order - 1)...pages.lowerBound | (1 << order - 1)
    }
    let address = concerned.lowerBound << 12 | order
    if random.chance(1, in: 2) {
      unit.write(address, at: 0x200, width: 8)
      unit.write(1 << 63 | kind << 60 | domain(table) << 32, at: 0x208, width: 8)
    } else {
      submit(2 | kind << 4 | domain(table) << 16, address)
      // The answer is written by the unit, and the model knows of it.
      let mark = UInt64.random(in: 1...0xFFFF_FFFF, using: &random)
      submit(5 | 1 << 5 | mark << 32, status)
      world.model.write((0..<4).map { UInt8(truncatingIfNeeded: mark >> (8 * UInt64($0))) }[...], status)
    }
    switch kind {
    case 1: return (0..<World.functions).map { ($0, 0...UInt64.max) }
    case 2: return [(table, 0...UInt64.max)]
    default: return [(table, concerned)]
    }
  }

  private func submit(_ low: UInt64, _ high: UInt64) {
    world.write(low, at: queue + tail)
    world.write(high, at: queue + tail + 8)
    tail = (tail + 16) & 4095
    unit.write(tail, at: 0x88, width: 4)
  }

  // MARK: Faults

  func complaint(expecting fault: DMAFault?, from requester: RequesterID) -> String? {
    var records: [(page: UInt64, source: UInt64, isRead: Bool, reason: UInt64)] = []
    let capability = unit.read(at: 0x08, width: 8)
    let first = Int(capability >> 24 & 0x3FF) * 16
    for i in 0...Int(capability >> 40 & 255) {
      let high = unit.read(at: first + 16 * i + 8, width: 8)
      guard high >> 63 == 1 else { continue }
      records.append(
        (unit.read(at: first + 16 * i, width: 8) >> 12, high & 0xFFFF, high >> 62 & 1 == 1, high >> 32 & 255))
      unit.write(1 << 31, at: first + 16 * i + 12, width: 4)
    }
    guard let fault else {
      return records.isEmpty ? nil : "recorded were \(records), where it should have been nothing"
    }
    let isBeyond = fault.address.rawValue >> UInt64(12 + 9 * levels) != 0
    let reason: UInt64 = isBeyond ? 4 : fault.access == .write ? 5 : 6
    if records.count == 1, let record = records.first, record.page == fault.address.rawValue >> 12,
      record.source == UInt64(requester.rawValue),
      record.isRead == (fault.access == .read), record.reason == reason
    {
      return nil
    }
    return "recorded were \(records), where it should have been \(fault) of \(requester) with reason \(reason)"
  }
}
