/// A bridge to a secondary bus, such as a root port: functions behind it keep requester IDs of their own, with the bus
/// number that software gave the secondary bus.
///
/// It forwards what its windows say, once its command register allows that; and it lets those behind it reach memory
/// when its own bus master enable bit does (PCI-to-PCI bridge specification, 3.2.4.3).
///
/// One from PCI Express to a conventional bus is different: on that bus requests carry no requester ID, so the bridge
/// sends everything under a number of its own, device 0 function 0 of its secondary bus (PCI Express to PCI bridge
/// specification, 2.3). To an IOMMU all functions behind it are one endpoint, and cannot be kept apart (R081); see
/// ``PCIBus/endpoints``.
public final class PCIBridge: PCIFunction {
  public let configuration: ConfigurationSpace
  /// Whether the functions behind it share a number.
  let sharesNumber: Bool

  /// - Parameters:
  ///   - identity: what software sees; the class code of a bridge is 0x060400.
  ///   - kind: what its PCI Express capability says; nil: it has none, and forwards requester IDs all the same.
  public init(
    _ identity: PCIIdentity = PCIIdentity(vendorID: 0x1b36, deviceID: 0x0001, classCode: 0x06_04_00),
    express kind: PCIExpressKind? = nil
  ) {
    var layout = ConfigurationLayout(bridge: identity)
    if let kind { layout.addExpress(kind) }
    configuration = ConfigurationSpace(layout)
    sharesNumber = kind == .bridgeToPCI
  }

  public func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt64 { allOnes(width) }
  public func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt64) {}
  public func reset() { configuration.reset() }
}

/// A bridge's bus numbers and windows, as programmed.
public struct BridgeDecoding: Hashable, Sendable {
  public var secondary: UInt8
  public var subordinate: UInt8
  /// What is forwarded, each nil while its limit is below its base.
  public var io: ClosedRange<UInt64>?
  public var memory: ClosedRange<UInt64>?
  public var prefetchable: ClosedRange<UInt64>?
  /// The secondary bus is being held in reset.
  public var isResetting: Bool

  init(_ value: (_ at: Int, _ width: Int) -> UInt64) {
    secondary = UInt8(value(PCIRegister.secondaryBus, 1))
    subordinate = UInt8(value(PCIRegister.subordinateBus, 1))
    func range(_ base: UInt64, _ limit: UInt64, _ granule: UInt64) -> ClosedRange<UInt64>? {
      limit >= base ? base...(limit | (granule - 1)) : nil
    }
    io = range(
      value(PCIRegister.ioBaseUpper, 2) << 16 | (value(PCIRegister.ioBase, 1) & 0xf0) << 8,
      value(PCIRegister.ioLimitUpper, 2) << 16 | (value(PCIRegister.ioLimit, 1) & 0xf0) << 8, 0x1000)
    memory = range(
      (value(PCIRegister.memoryBase, 2) & 0xfff0) << 16, (value(PCIRegister.memoryLimit, 2) & 0xfff0) << 16, 0x10_0000)
    prefetchable = range(
      value(PCIRegister.prefetchableBaseUpper, 4) << 32 | (value(PCIRegister.prefetchableBase, 2) & 0xfff0) << 16,
      value(PCIRegister.prefetchableLimitUpper, 4) << 32 | (value(PCIRegister.prefetchableLimit, 2) & 0xfff0) << 16,
      0x10_0000)
    isResetting = value(PCIRegister.bridgeControl, 2) & 0x40 != 0
  }

  /// Whether accesses to a bus number go to the secondary side.
  func contains(bus: UInt8) -> Bool { secondary != 0 && secondary <= bus && bus <= subordinate }

  func forwards(_ address: UInt64, width: Int, isIO: Bool) -> Bool {
    let (last, isPastTheEnd) = address.addingReportingOverflow(UInt64(max(width, 1) - 1))
    guard !isPastTheEnd else { return false }
    for window in isIO ? [io] : [memory, prefetchable] {
      if let window, window.contains(address), window.contains(last) { return true }
    }
    return false
  }
}
