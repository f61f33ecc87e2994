public import DMA
public import VirtioDrivers

/// A domain of a VT-d unit: device addresses, and the guest memory behind them, for every requester attached to it.
///
/// Pages are as large as addresses and counts allow. What one map made visible is unmapped whole: large pages are not split.
/// A single unmap before a flush invalidates its pages, several the whole domain. Used by the unit's thread.
public final class VTdDomain: IOMMUDriver {
  let unit: VTdDriver
  let number: UInt16
  private var tables: PageTables<VTdFormat>
  private var waiting = WaitingRanges()
  private var hasEnded = false
  /// Bits of its device addresses.
  public let addressWidth: Int

  init(_ unit: VTdDriver, number: UInt16, levels: Int) throws(DMAError) {
    self.unit = unit
    self.number = number
    addressWidth = min(12 + 9 * levels, unit.capabilities.addressWidth)
    tables = try PageTables(in: unit.memory, levels: levels, largest: unit.capabilities.largestPage)
  }

  var root: UInt64 { tables.root }
  var levels: Int { tables.levels }

  /// The device addresses that can be mapped. Those of ``VTdDriver/reserved`` among them lead to interrupts.
  public var aperture: ClosedRange<UInt64> { 0...(1 << UInt64(addressWidth) - 1) }
  /// Pages of memory that its tables take.
  public var tablePages: Int { tables.tableCount }

  /// Gives the memory back; false if that was done before.
  func end() -> Bool {
    guard !hasEnded else { return false }
    hasEnded = true
    tables.freeAll()
    return true
  }

  public func map(_ address: DMAAddress, to guest: GuestAddress, count: UInt64, permissions: DMAPermissions) throws(DMAError) {
    try check(address, count)
    guard guest.rawValue & 4095 == 0, guest.rawValue < 1 << 52, count <= 1 << 52 - guest.rawValue, !permissions.isEmpty else {
      throw .range(guest, count: count)
    }
    let tablesChanged: Bool
    do throws(DMAError) {
      tablesChanged = try tables.map(address.rawValue, to: guest.rawValue, count: count, permissions: permissions)
    } catch {
      // Part of it was visible for a moment.
      waiting.add(address.rawValue, count)
      try? flush()
      throw error
    }
    guard unit.capabilities.hasCachingMode || tables.hasRetired else { return }
    let last = address.rawValue + (count - 1)
    unit.postIOTLB(domain: number, first: address.rawValue, last: last, keepsTables: !tablesChanged)
    guard unit.complete() else {
      try? tables.unmap(address.rawValue, count: count)
      throw .iommu(address)
    }
    tables.freeRetired()
  }

  public func unmap(_ address: DMAAddress, count: UInt64) throws(DMAError) {
    try check(address, count)
    try tables.unmap(address.rawValue, count: count)
    waiting.add(address.rawValue, count)
  }

  public func flush() throws(DMAError) {
    guard waiting.count > 0 else { return }
    let (first, last) = (waiting.first, waiting.last)
    if waiting.count == 1 {
      unit.postIOTLB(domain: number, first: first, last: last, keepsTables: !tables.hasRetired)
    } else {
      unit.postIOTLB(2, domain: number)
    }
    // After the unit's own: a device could ask it anew meanwhile.
    for requester in unit.deviceIOTLBs(of: number) { unit.postDeviceIOTLB(requester, first: first, last: last) }
    waiting = WaitingRanges()
    guard unit.complete() else { throw .iommu(DMAAddress(first)) }
    tables.freeRetired()
  }

  private func check(_ address: DMAAddress, _ count: UInt64) throws(DMAError) {
    guard !hasEnded, (address.rawValue | count) & 4095 == 0, count > 0, aperture.contains(address.rawValue),
      count - 1 <= aperture.upperBound - address.rawValue
    else { throw .iommu(address) }
  }
}

/// Second-level entries (chapter "Translation Structure Formats"): bit 0 lets devices read, bit 1 lets them write, bit 7 ends the walk.
enum VTdFormat: PageTableFormat {
  static func table(at address: UInt64, level: Int) -> UInt64 { address | 3 }
  static func page(at address: UInt64, level: Int, permissions: DMAPermissions) -> UInt64 {
    address | UInt64(permissions.rawValue & 3) | (level > 1 ? 1 << 7 : 0)
  }
  static func isPresent(_ entry: UInt64) -> Bool { entry & 3 != 0 }
  static func isPage(_ entry: UInt64, level: Int) -> Bool { level == 1 || entry & 1 << 7 != 0 }
  static func address(_ entry: UInt64) -> UInt64 { entry & 0x000F_FFFF_FFFF_F000 }
}
