import DriverDMA
import IOMMUInterface
import Synchronization
import Virtio
import VirtioTestKit

/// The echo device, which writes down what its handlers were told was negotiated.
final class FeatureWitness: VirtioDevice {
  private let inner = EchoDevice()
  private let log = Mutex<[Features]>([])
  var seen: [Features] { log.withLock { $0 } }
  var id: DeviceID { inner.id }
  var features: Features { inner.features }
  var maxQueueSizes: [UInt16] { inner.maxQueueSizes }
  func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    log.withLock { $0.append(features) }
    return try inner.makeHandler(for: group, features: features)
  }
}
