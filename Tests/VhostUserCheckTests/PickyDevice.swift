import Synchronization
import Virtio

/// A disk that knows one request, the read of the checks, and takes anything else badly. It has no data.
final class PickyDevice: VirtioDevice {
  /// What it does about a chain, or a ring, that it does not like.
  enum Temper: String, CaseIterable, CustomStringConvertible, Sendable {
    case dies, closes, sulks
    var description: String { rawValue }
  }
  /// What is done about it outside.
  let outcry: Mutex<(@Sendable () -> Void)?> = Mutex(nil)
  /// It takes no request any more.
  let sulks = Atomic<Bool>(false)
  let temper: Temper

  init(_ temper: Temper) { self.temper = temper }

  var id: DeviceID { .block }
  var features: Features { .ring }
  var maxQueueSizes: [UInt16] { [256] }
  var configurationSize: Int { 60 }
  func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    Handler(self)
  }

  func complain() {
    if temper == .sulks { sulks.store(true, ordering: .sequentiallyConsistent) }
    outcry.withLock { $0 }?()
  }

  private final class Handler: QueueHandler {
    private let device: PickyDevice
    init(_ device: PickyDevice) { self.device = device }

    func available(_ index: Int, in queues: inout QueueSet) throws(QueueError) {
      do throws(QueueError) {
        while let chain = try queues[index].next() {
          if device.sulks.load(ordering: .sequentiallyConsistent) { continue }
          let isFine =
            chain.fault == nil && chain.readable.byteCount == 16 && chain.readable.segmentCount == 1
            && chain.writable.byteCount == 513
          if !isFine { device.complain() }
          if isFine { _ = chain.writable.zero(from: 0, count: 513) }
          queues[index].complete(chain, written: isFine ? 513 : 0)
        }
      } catch {
        device.complain()
        throw error
      }
    }
  }
}
