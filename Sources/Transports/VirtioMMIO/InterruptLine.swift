import Synchronization
import Virtio
import VirtioServing

/// InterruptStatus and the one line that follows it: asserted while a bit is set (§4.2.3.4).
final class InterruptLine: DeviceInterrupts {
  private let status = Mutex<UInt32>(0)
  private let line: @Sendable (Bool) -> Void

  init(_ line: @escaping @Sendable (Bool) -> Void) { self.line = line }

  func usedBuffers(_ index: Int) { change { $0 | MMIOTransport.Interrupt.usedBuffer } }
  func configurationChanged() { change { $0 | MMIOTransport.Interrupt.configuration } }
  func reset() { change { _ in 0 } }

  /// What the driver has not acknowledged.
  var pending: UInt32 { status.withLock { $0 } }

  /// The driver has handled these. Bits that are no events, or did not happen, change nothing.
  func acknowledge(_ bits: UInt32) { change { $0 & ~bits } }

  private func change(_ body: (UInt32) -> UInt32) {
    // Under the lock, so that the line ends as the register does.
    status.withLock { status in
      let old = status
      status = body(old)
      if (old != 0) != (status != 0) { line(status != 0) }
    }
  }
}
