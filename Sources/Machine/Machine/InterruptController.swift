import HostIO
import IOMMUInterface
import PCI

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
