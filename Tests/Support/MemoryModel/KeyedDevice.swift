import DMA
import Synchronization
import Virtio

/// A device that reads all of a chain, and writes a keyed function of it: no byte of the answer is right unless every
/// byte of the question was.
final class KeyedDevice: VirtioDevice {
  let key: UInt64
  private let lies: Bool
  private let seen = Mutex<[DMAFault?]>([])

  /// - Parameter lies: the device gives a wrong length, for a model that is to notice.
  init(key: UInt64, lies: Bool = false) {
    self.key = key
    self.lies = lies
  }

  var id: DeviceID { .entropy }
  var features: Features { .ring }
  var maxQueueSizes: [UInt16] { [64] }

  /// Of each chain since the last question: the fault in it, or nil.
  func takeSeen() -> [DMAFault?] {
    seen.withLock { seen in
      defer { seen = [] }
      return seen
    }
  }

  func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    Handler(self)
  }

  /// The device's function; sometimes it answers with less than there is room for.
  static func answer(to read: [UInt8], room: Int, key: UInt64) -> [UInt8] {
    var sum = key
    for byte in read { sum = (sum ^ UInt64(byte)) &* 0x100_0000_01b3 }
    let count = sum % 4 == 0 ? room / 2 : room
    return (0..<count).map {
      UInt8(truncatingIfNeeded: sum >> UInt64(8 * ($0 & 7))) &+ UInt8(truncatingIfNeeded: $0 / 8)
    }
  }

  private final class Handler: QueueHandler {
    private let device: KeyedDevice
    init(_ device: KeyedDevice) { self.device = device }

    func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
      while let chain = try queues[index].next() {
        device.seen.withLock { $0.append(chain.fault) }
        guard chain.fault == nil else {
          queues[index].complete(chain, written: 0)
          continue
        }
        var read = [UInt8](repeating: 0, count: chain.readable.byteCount)
        var span = read.mutableSpan
        _ = chain.readable.copy(from: 0, into: &span)
        let answer = KeyedDevice.answer(to: read, room: chain.writable.byteCount, key: device.key)
        _ = chain.writable.copy(answer.span, to: 0)
        queues[index].complete(chain, written: device.lies && answer.count > 1 ? answer.count - 1 : answer.count)
      }
    }
  }
}
