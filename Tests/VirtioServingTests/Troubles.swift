import HostIO
import Synchronization
import Virtio
import VirtioServing

/// Hears of queues that failed.
final class Troubles: DeviceEvents {
  private let errors = Mutex<[Int: QueueError]>([:])
  let happened: EventFD
  init() throws { happened = try EventFD() }
  func needsReset(_ index: Int, _ error: QueueError) {
    errors.withLock { $0[index] = error }
    happened.signal()
  }
  func error(_ index: Int) -> QueueError? { errors.withLock { $0[index] } }
}
