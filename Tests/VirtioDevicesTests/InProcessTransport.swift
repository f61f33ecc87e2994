import DMA
import Virtio
import VirtioTestKit

/// A device as its driver reaches it, in the driver's thread: a notification is served before it returns.
final class InProcessTransport: DriverTransport {
  let device: any VirtioDevice
  let memory: GuestMemory
  private var queues: [Int: DeviceHarness] = [:]
  private(set) var negotiated: Features = []
  private var bits: DeviceStatus = []
  /// Notifications get lost.
  var isDeaf = false
  /// FEATURES_OK does not stay set.
  var refusesFeatures = false
  /// The configuration changes with every look.
  var isRestless = false
  private var generation: UInt32 = 0

  init(_ device: any VirtioDevice, _ memory: GuestMemory) {
    self.device = device
    self.memory = memory
  }

  var deviceID: DeviceID { device.id }
  var status: DeviceStatus {
    get { bits }
    set {
      bits = refusesFeatures ? newValue.subtracting(.featuresOK) : newValue
      if newValue.isEmpty {
        for harness in queues.values { harness.reset() }
        queues = [:]
        device.reset()
      } else if bits.contains(.featuresOK) {
        device.accepted(negotiated)
      }
    }
  }
  var deviceFeatures: Features { device.features }
  func accept(_ features: Features) { negotiated = features }
  var configurationGeneration: UInt32 {
    if isRestless { generation &+= 1 }
    return generation
  }
  func readConfiguration(at offset: Int, into bytes: inout MutableSpan<UInt8>) { device.readConfiguration(at: offset, into: &bytes) }
  func writeConfiguration(at offset: Int, from bytes: Span<UInt8>) { device.writeConfiguration(at: offset, from: bytes) }
  func maxQueueSize(_ index: Int) -> UInt16 { index < device.maxQueueSizes.count ? device.maxQueueSizes[index] : 0 }
  func enableQueue(_ index: Int, _ layout: QueueLayout) {
    guard let harness = try? DeviceHarness(device, group: index, features: negotiated, in: PhysicalSpace(memory)) else { return }
    try? harness.start(index, layout)
    queues[index] = harness
  }
  func resetQueue(_ index: Int) { _ = queues.removeValue(forKey: index)?.stop(index) }
  func notify(_ index: Int, data: UInt16) { if !isDeaf { queues[index]?.kick(index) } }

  /// What the device has to say without being asked.
  func serve(_ index: Int) {
    guard let harness = queues[index] else { return }
    for one in harness.watched { harness.ready(one.token) }
  }
}
