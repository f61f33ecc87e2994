public import DMA
public import Virtio

/// A device as its driver reaches it, in the driver's thread: a notification is served before it returns.
public final class HarnessTransport: DriverTransport {
  public let device: any VirtioDevice
  public let memory: GuestMemory
  private var queues: [Int: DeviceHarness] = [:]
  public private(set) var negotiated: Features = []
  private var bits: DeviceStatus = []
  /// Notifications get lost.
  public var isDeaf = false
  /// FEATURES_OK does not stay set.
  public var refusesFeatures = false
  /// The configuration changes with every look.
  public var isRestless = false
  private var generation: UInt32 = 0

  public init(_ device: any VirtioDevice, _ memory: GuestMemory) {
    self.device = device
    self.memory = memory
  }

  public var deviceID: DeviceID { device.id }
  public var status: DeviceStatus {
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
  public var deviceFeatures: Features { device.features }
  public func accept(_ features: Features) { negotiated = features }
  public var configurationGeneration: UInt32 {
    if isRestless { generation &+= 1 }
    return generation
  }
  public func readConfiguration(at offset: Int, into bytes: inout MutableSpan<UInt8>) {
    device.readConfiguration(at: offset, into: &bytes)
  }
  public func writeConfiguration(at offset: Int, from bytes: Span<UInt8>) {
    device.writeConfiguration(at: offset, from: bytes)
  }
  public func maxQueueSize(_ index: Int) -> UInt16 {
    index < device.maxQueueSizes.count ? device.maxQueueSizes[index] : 0
  }
  public func enableQueue(_ index: Int, _ layout: QueueLayout) {
    guard let harness = try? DeviceHarness(device, group: index, features: negotiated, in: PhysicalSpace(memory)) else {
      return
    }
    try? harness.start(index, layout)
    queues[index] = harness
  }
  public func resetQueue(_ index: Int) { _ = queues.removeValue(forKey: index)?.stop(index) }
  public func notify(_ index: Int, data: UInt16) { if !isDeaf { queues[index]?.kick(index) } }

  /// What the device has to say without being asked.
  public func serve(_ index: Int) {
    guard let harness = queues[index] else { return }
    for one in harness.watched { harness.ready(one.token) }
  }
}
