import DMA
import DriverDMA
public import IOMMUDrivers
import IOMMUInterface
public import IOMMUs
import VirtioTestKit

extension VTdUnit: RegisterAccess {}
extension AMDViUnit: RegisterAccess {}

/// The three registers of a sun4u unit, by their offsets.
final class Sun4uRegisters: RegisterAccess {
  let unit: Sun4uIOMMU
  init(_ unit: Sun4uIOMMU) { self.unit = unit }
  func read(at offset: Int, width: Int) -> UInt64 { Sun4uIOMMU.Register(rawValue: offset).map(unit.read) ?? 0 }
  func write(_ value: UInt64, at offset: Int, width: Int) {
    if let register = Sun4uIOMMU.Register(rawValue: offset) { unit.write(value, to: register) }
  }
}

/// A TCE table's hypercalls, which can be told to fail.
final class Hypercalls: TCEHypercalls {
  let table: TCETable
  /// Calls that still succeed; nil: all.
  var left: Int?
  private(set) var calls = 0
  init(_ table: TCETable) { self.table = table }

  private func call(_ body: () throws(TCETable.HypercallError) -> Void) -> Bool {
    calls += 1
    if let left {
      guard left > 0 else { return false }
      self.left = left - 1
    }
    do throws(TCETable.HypercallError) { try body() } catch { return false }
    return true
  }
  func putTCE(_ address: DMAAddress, _ entry: UInt64) -> Bool {
    call { () throws(TCETable.HypercallError) in try table.put(address, entry) }
  }
  func putTCEs(_ address: DMAAddress, _ entries: [UInt64]) -> Bool {
    entries.count <= 512 && call { () throws(TCETable.HypercallError) in try table.put(address, entries) }
  }
  func stuffTCE(_ address: DMAAddress, _ entry: UInt64, count: Int) -> Bool {
    call { () throws(TCETable.HypercallError) in try table.stuff(address, entry, count: count) }
  }
}

extension GuestMemory {
  /// Writes to each page its own number.
  func numberPages(from first: UInt64, count: UInt64) {
    for page in first..<first + count { setWord(page << 12, page) }
  }
}

/// A unit with its driver, in every way they come.
enum UnitKind: String, CaseIterable, CustomStringConvertible {
  case vtd39, vtd48, vtdSmallPages, vtdCachingMode, vtdDeviceIOTLB, amdvi39, amdvi64, amdviDeviceIOTLB, tce, sun4uSmall,
    sun4uLarge
  var description: String { rawValue }
  var isStrict: Bool { [.tce, .sun4uSmall, .sun4uLarge].contains(self) }
}

/// Guest memory, a unit, its driver with one domain, and a requester in it.
final class UnitRig {
  static let requester = RequesterID(bus: 0, device: 3)
  let kind: UnitKind
  let memory: GuestMemory
  /// The driver's memory: 16 MiB from 1 MiB on. From 32 MiB on is memory for tests to map, each page with its number in
  /// it.
  let pages: GuestPages
  let unit: any IOMMU
  let domain: any IOMMUDomain
  let aperture: ClosedRange<UInt64>
  let granule: UInt64
  let endpoint: EndpointSpace
  var device: DeviceView
  private(set) var vtd: VTdDriver?
  private(set) var amdvi: AMDViDriver?
  static let data: UInt64 = 32 << 20
  static let dataBytes: UInt64 = 32 << 20

  init(_ kind: UnitKind, memory given: GuestMemory? = nil, endpoint isMade: Bool = true) throws {
    self.kind = kind
    let memory = try given ?? GuestMemory(byteCount: 64 << 20)
    self.memory = memory
    memory.numberPages(from: Self.data >> 12, count: Self.dataBytes >> 12)
    let pages = GuestPages(memory, at: GuestAddress(1 << 20), byteCount: 16 << 20)
    self.pages = pages
    endpoint = EndpointSpace(memory, requester: Self.requester, isOpen: true)
    device = DeviceView(endpoint)
    switch kind {
    case .tce:
      let table = TCETable(start: DMAAddress(0x8000_0000), pages: 16384)
      let driver = try TCEDriver(Hypercalls(table), start: DMAAddress(0x8000_0000), pages: 16384)
      (unit, domain, aperture, granule) = (table, driver, driver.aperture, driver.pageSize)
    case .sun4uSmall, .sun4uLarge:
      let iommu = Sun4uIOMMU(memory)
      let driver = try Sun4uDriver(
        Sun4uRegisters(iommu), pages: pages, order: kind == .sun4uSmall ? 4 : 1, largePages: kind == .sun4uLarge)
      try driver.enable()
      (unit, domain, aperture, granule) = (iommu, driver, driver.aperture, driver.pageSize)
    case .amdvi39, .amdvi64, .amdviDeviceIOTLB:
      let iommu = AMDViUnit(memory, levels: kind == .amdvi39 ? 4 : 6, interrupt: { _ in })
      let driver = try AMDViDriver(iommu, pages: pages, buses: 1)
      let domain = try driver.makeDomain(levels: kind == .amdvi39 ? 3 : kind == .amdvi64 ? 6 : 4)
      try driver.attach(Self.requester, to: domain, deviceIOTLB: kind == .amdviDeviceIOTLB)
      try driver.enable()
      amdvi = driver
      (unit, self.domain, aperture, granule) = (iommu, domain, domain.aperture, 4096)
    default:
      var options = VTdOptions(addressWidth: kind == .vtd39 ? 39 : 48)
      options.hasLargePages = kind != .vtdSmallPages
      options.hasCachingMode = kind == .vtdCachingMode
      let iommu = VTdUnit(memory, options: options, interrupt: { _ in })
      let driver = try VTdDriver(iommu, pages: pages)
      let domain = try driver.makeDomain()
      try driver.attach(Self.requester, to: domain, deviceIOTLB: kind == .vtdDeviceIOTLB)
      try driver.enable()
      vtd = driver
      (unit, self.domain, aperture, granule) = (iommu, domain, domain.aperture, 4096)
    }
    if isMade { unit.adopt(endpoint) }
  }

  func makeMapper(_ flush: IOMMUMapper.Flush, limit: UInt64 = .max) -> IOMMUMapper {
    IOMMUMapper(domain, addresses: makeAddresses(), pages: pages, limit: limit, flush: flush)
  }

  /// All that the domain has, but for interrupts and the first page.
  func makeAddresses() -> IOVAAllocator {
    let reserved = vtd != nil ? VTdDriver.reserved : amdvi != nil ? AMDViDriver.reserved : []
    return IOVAAllocator(granule: granule, aperture: aperture, reserved: reserved + [0...(granule - 1)])
  }
}
