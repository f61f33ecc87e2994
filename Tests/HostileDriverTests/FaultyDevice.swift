import DMA
import HostIO
import Virtio

/// A device with a flaw, to see whether an attack finds it: it fills each buffer with ones, but for what it does wrong.
final class FaultyDevice: VirtioDevice {
  enum Flaw: Hashable, Sendable, CaseIterable {
    /// None.
    case none
    /// Writes a byte behind the buffer, where the driver gave it nothing.
    case scribbles
    /// Writes into memory of its last session once more, after the reset.
    case remembers
    /// Keeps its first buffer for ever.
    case keeps
    /// Keeps every buffer for ever, after resets too.
    case mute
    /// Never sleeps.
    case spins
  }
  private let flaw: Flaw
  private let memory: GuestMemory

  init(_ flaw: Flaw, _ memory: GuestMemory) {
    self.flaw = flaw
    self.memory = memory
  }

  var id: DeviceID { .entropy }
  var features: Features { .ring }
  var maxQueueSizes: [UInt16] { [16] }

  func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    do throws(HostError) { return try Handler(flaw, memory) } catch { throw DeviceError("\(error)") }
  }

  private final class Handler: QueueHandler {
    private let flaw: Flaw
    private let memory: GuestMemory
    private let restless: EventFD
    private var served = 0

    init(_ flaw: Flaw, _ memory: GuestMemory) throws(HostError) {
      self.flaw = flaw
      self.memory = memory
      restless = try EventFD()
      if flaw == .spins { restless.signal() }
    }

    /// A descriptor that is ready and never read.
    var watched: [WatchedDescriptor] {
      flaw == .spins ? [WatchedDescriptor(descriptor: restless.rawValue, token: 0)] : []
    }

    func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
      while let chain = try queues[index].next() {
        served += 1
        // Dropped: the driver is never notified.
        if flaw == .mute || flaw == .keeps && served == 1 { continue }
        let bytes = [UInt8](repeating: 1, count: chain.writable.byteCount)
        let count = chain.writable.copy(bytes.span, to: 0)
        let place: UInt64? =
          switch flaw {
          case .scribbles: Session.firstBase + 0x1_3000 + 64 + 128
          case .remembers: Session.firstBase + 0x1_3000 + 64
          default: nil
          }
        if let place { _ = memory.copy([0xa0 + UInt8(served & 15)].span, to: GuestAddress(place)) }
        queues[index].complete(chain, written: count)
      }
    }
  }
}
