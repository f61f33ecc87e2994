public import DMA
public import DriverDMA

/// A domain of a VT-d unit: device addresses, and the guest memory behind them, for every requester attached to it.
///
/// Pages are as large as addresses and counts allow. What one map made visible is unmapped whole: large pages are not
/// split. A single unmap before a flush invalidates its pages, several the whole domain. Used by the unit's thread.
public final class VTdDomain: IOMMUDomain {
  let unit: VTdDriver
  private var mappings: DomainMappings<VTdFormat>
  /// Bits of its device addresses.
  public let addressWidth: Int

  init(_ unit: VTdDriver, number: UInt16, levels: Int) throws(DMAError) {
    self.unit = unit
    addressWidth = min(12 + 9 * levels, unit.capabilities.addressWidth)
    mappings = try DomainMappings(
      number, in: unit.memory, levels: levels, largest: unit.capabilities.largestPage,
      lastAddress: 1 << UInt64(addressWidth) - 1)
  }

  var number: UInt16 { mappings.number }
  var root: UInt64 { mappings.tables.root }
  var levels: Int { mappings.tables.levels }

  /// The device addresses that can be mapped. Those of ``VTdDriver/reserved`` among them lead to interrupts.
  public var aperture: ClosedRange<UInt64> { 0...(1 << UInt64(addressWidth) - 1) }
  /// Pages of memory that its tables take.
  public var tablePages: Int { mappings.tables.tableCount }

  var hasEnded: Bool { mappings.hasEnded }
  /// Gives the memory back; false if that was done before.
  func end() -> Bool { mappings.end() }

  public func map(
    _ address: DMAAddress, to guest: GuestAddress, count: UInt64, permissions: DMAPermissions
  ) throws(DMAError) {
    try mappings.map(address, to: guest, count: count, permissions: permissions, by: unit)
  }

  public func unmap(_ address: DMAAddress, count: UInt64) throws(DMAError) { try mappings.unmap(address, count: count) }

  public func flush() throws(DMAError) { try mappings.flush(by: unit) }
}
