import DMA
import HostIO
import PCI
import VirtioDrivers
import VirtioMMIO

/// A function as its driver reaches it: through the bus, at the addresses that firmware gave it.
final class BusAccess: PCIFunctionAccess {
  private let bus: PCIBus
  private let requester: RequesterID
  private let windows: [BARWindow]

  init(_ bus: PCIBus, _ found: PCIEnumerator.Found) {
    self.bus = bus
    requester = found.requester
    windows = found.windows
  }

  func readConfiguration(at offset: Int, width: Int) -> UInt32 { bus.readConfiguration(of: requester, at: offset, width: width) }
  func writeConfiguration(at offset: Int, width: Int, _ value: UInt32) {
    bus.writeConfiguration(of: requester, at: offset, width: width, value)
  }

  func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt32 {
    guard let window = windows.first(where: { $0.index == index }) else { return .max }
    let address = window.base &+ offset
    if window.isIO { return bus.read(io: UInt32(truncatingIfNeeded: address), width: width) }
    return UInt32(truncatingIfNeeded: bus.read(memory: address, width: width))
  }

  func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt32) {
    guard let window = windows.first(where: { $0.index == index }) else { return }
    let address = window.base &+ offset
    if window.isIO {
      bus.write(io: UInt32(truncatingIfNeeded: address), width: width, value)
    } else {
      bus.write(memory: address, width: width, UInt64(value))
    }
  }
}

/// The registers of a memory-mapped device, as a processor's load or store reaches them.
final class MMIOAccess: MMIORegisterAccess {
  private let device: VirtioMMIODevice
  init(_ device: VirtioMMIODevice) { self.device = device }
  func read(at offset: UInt64, width: Int) -> UInt32 { UInt32(truncatingIfNeeded: device.read(at: offset, width: width)) }
  func write(at offset: UInt64, width: Int, _ value: UInt32) { device.write(at: offset, width: width, UInt64(value)) }
}

/// The machine's interrupt controller: every message and every change of a pin wakes the processor that waits.
final class InterruptController: MessageInterrupts, LineInterrupts {
  private let arrived: EventFD

  init() throws(HostError) { arrived = try EventFD() }

  func deliver(_ message: InterruptMessage, from requester: RequesterID) { arrived.signal() }
  func set(_ pin: PCIInterruptPin, ofDevice device: UInt8, asserted: Bool) { if asserted { arrived.signal() } }
  /// A device that is on no PCI bus.
  func setLine(asserted: Bool) { if asserted { arrived.signal() } }

  /// Returns when an interrupt has come since the last call, or after a while without one.
  func wait() {
    _ = try? arrived.wait(timeout: .milliseconds(1))
    _ = try? arrived.drain()
  }
}
