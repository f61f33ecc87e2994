public import IOMMUInterface

/// A function as its driver reaches it: through the bus, at the addresses that firmware gave it. One thread uses it.
public final class PCIBusAccess: PCIFunctionAccess {
  private let bus: PCIBus
  /// Its number on the bus.
  public let requester: RequesterID
  /// Its BARs that have a place; code that moves one updates this.
  public var windows: [BARWindow]

  public init(_ bus: PCIBus, _ requester: RequesterID, _ windows: [BARWindow]) {
    self.bus = bus
    self.requester = requester
    self.windows = windows
  }

  /// A function that firmware has found.
  public convenience init(_ bus: PCIBus, _ found: PCIEnumerator.Found) {
    self.init(bus, found.requester, found.windows)
  }

  /// Where a BAR is; nil: nowhere.
  private func window(_ index: Int) -> BARWindow? { windows.first { $0.index == index } }

  public func readConfiguration(at offset: Int, width: Int) -> UInt32 {
    bus.readConfiguration(of: requester, at: offset, width: width)
  }

  public func writeConfiguration(at offset: Int, width: Int, _ value: UInt32) {
    bus.writeConfiguration(of: requester, at: offset, width: width, value)
  }

  /// What is nowhere reads as all ones.
  public func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt32 {
    guard let window = window(index) else { return .max }
    let address = window.base &+ offset
    if window.isIO { return bus.read(io: UInt32(truncatingIfNeeded: address), width: width) }
    return UInt32(truncatingIfNeeded: bus.read(memory: address, width: width))
  }

  public func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt32) {
    guard let window = window(index) else { return }
    let address = window.base &+ offset
    if window.isIO {
      bus.write(io: UInt32(truncatingIfNeeded: address), width: width, value)
    } else {
      bus.write(memory: address, width: width, UInt64(value))
    }
  }
}
