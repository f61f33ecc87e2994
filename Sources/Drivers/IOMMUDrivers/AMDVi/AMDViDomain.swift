public import DMA
public import DriverDMA

/// A domain of an AMD-Vi unit: device addresses, and the guest memory behind them, for every requester attached to it.
///
/// Pages are as large as addresses and counts allow. What one map made visible is unmapped whole: large pages are not
/// split. A single unmap before a flush invalidates its pages, several the whole domain. Used by the unit's thread.
public final class AMDViDomain: IOMMUDomain {
  let unit: AMDViDriver
  private var mappings: DomainMappings<AMDViFormat>
  /// The device addresses that can be mapped. Those of ``AMDViDriver/reserved`` among them lead elsewhere.
  public let aperture: ClosedRange<UInt64>

  init(_ unit: AMDViDriver, number: UInt16, levels: Int) throws(DMAError) {
    self.unit = unit
    aperture = 0...(levels == 6 ? .max : 1 << UInt64(12 + 9 * levels) - 1)
    mappings = try DomainMappings(number, in: unit.memory, levels: levels, largest: 3, lastAddress: aperture.upperBound)
  }

  var number: UInt16 { mappings.number }
  var root: UInt64 { mappings.tables.root }
  var levels: Int { mappings.tables.levels }

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
