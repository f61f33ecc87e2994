import DMA
import HostIO
import PCI
import Synchronization
import VirtioDrivers

/// Where messages arrive, each of which wakes whoever waits.
final class ModelPlatform: MessageInterrupts {
  private let arrived: EventFD
  init() throws { arrived = try EventFD() }

  func deliver(_ message: InterruptMessage, from requester: RequesterID) { arrived.signal() }
  func wake() { arrived.signal() }

  /// Waits until `condition` holds. False after 20 seconds: something hangs.
  func wait(_ condition: () -> Bool) -> Bool {
    let end = ContinuousClock.now + .seconds(20)
    while !condition() {
      guard ContinuousClock.now < end else { return false }
      // A function that may not write memory sends no message, so what it does is looked for now and then.
      if (try? arrived.wait(timeout: .milliseconds(2))) == true { _ = try? arrived.drain() }
    }
    return true
  }
}

/// A function as its driver reaches it: through the bus, where firmware put it.
final class ModelAccess: PCIFunctionAccess {
  private let bus: PCIBus
  let requester: RequesterID
  var windows: [BARWindow]

  init(_ bus: PCIBus, _ found: PCIEnumerator.Found) {
    self.bus = bus
    requester = found.requester
    windows = found.windows
  }

  func readConfiguration(at offset: Int, width: Int) -> UInt32 { bus.readConfiguration(of: requester, at: offset, width: width) }
  func writeConfiguration(at offset: Int, width: Int, _ value: UInt32) { bus.writeConfiguration(of: requester, at: offset, width: width, value) }

  func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt32 {
    guard let window = windows.first(where: { $0.index == index }) else { return .max }
    return window.isIO
      ? bus.read(io: UInt32(window.base + offset), width: width) : UInt32(truncatingIfNeeded: bus.read(memory: window.base + offset, width: width))
  }
  func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt32) {
    guard let window = windows.first(where: { $0.index == index }) else { return }
    if window.isIO { bus.write(io: UInt32(window.base + offset), width: width, value) } else {
      bus.write(memory: window.base + offset, width: width, UInt64(value))
    }
  }
}
