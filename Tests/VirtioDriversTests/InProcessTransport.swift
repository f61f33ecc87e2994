import DMA
import Virtio
import VirtioTestKit

/// A device in the driver's own thread: a notification returns when the device has done what it can. With some vices on
/// request.
final class InProcessTransport: DriverTransport {
  let device: any VirtioDevice
  let offered: Features
  private let platform: any DMASpace
  private let physical: any DMASpace
  private(set) var harness: DeviceHarness?
  private(set) var layouts: [Int: QueueLayout] = [:]
  private(set) var accepted: Features = []
  /// Every status written, in order.
  private(set) var statuses: [DeviceStatus] = []
  private(set) var notifications = 0
  private var bits = DeviceStatus()

  /// Says no to FEATURES_OK.
  var refusesFeatures = false
  /// Never comes out of a reset.
  var hangsInReset = false
  /// Reads of the status that show the reset still under way.
  var slowReset = 0
  private var resetReads = 0
  /// Does not hear notifications.
  var isDeaf = false
  /// What another kind of device says it is.
  var claimedID: DeviceID?
  /// Called after each notification.
  var afterNotify: () -> Void = {}

  /// - Parameters:
  ///   - platform: what the device reaches when the bit is negotiated.
  ///   - physical: what it reaches when it is not.
  init(_ device: any VirtioDevice, offered: Features, platform: any DMASpace, physical: any DMASpace) {
    self.device = device
    self.offered = offered
    self.platform = platform
    self.physical = physical
  }

  var deviceID: DeviceID { claimedID ?? device.id }
  var deviceFeatures: Features { offered }
  var isRunning: Bool { bits.contains(.driverOK) }

  var status: DeviceStatus {
    get {
      if resetReads > 0 {
        resetReads -= 1
        return .acknowledge
      }
      return bits
    }
    set {
      statuses.append(newValue)
      if newValue.isEmpty {
        if hangsInReset { return }
        harness?.reset()
        harness = nil
        layouts = [:]
        bits = []
        resetReads = slowReset
        return
      }
      var next = newValue
      if next.contains(.featuresOK), !bits.contains(.featuresOK) {
        // The bit, once offered, is required.
        let lacks = offered.contains(.accessPlatform) && !accepted.contains(.accessPlatform)
        if refusesFeatures || lacks || !accepted.isSubset(of: offered) { next.remove(.featuresOK) }
      }
      let begins = next.contains(.driverOK) && !bits.contains(.driverOK)
      bits = next
      guard begins else { return }
      do {
        let space = AddressPath(negotiated: accepted) == .platform ? platform : physical
        let harness = try DeviceHarness(device, features: accepted, in: space)
        for (index, layout) in layouts { try harness.start(index, layout) }
        self.harness = harness
      } catch {
        bits.insert(.needsReset)
      }
    }
  }

  func accept(_ features: Features) { accepted = features }
  var configurationGeneration: UInt32 { 0 }
  func readConfiguration(at offset: Int, into bytes: inout MutableSpan<UInt8>) {
    device.readConfiguration(at: offset, into: &bytes)
  }
  func writeConfiguration(at offset: Int, from bytes: Span<UInt8>) {
    device.writeConfiguration(at: offset, from: bytes)
  }
  func maxQueueSize(_ index: Int) -> UInt16 {
    device.maxQueueSizes.indices.contains(index) ? device.maxQueueSizes[index] : 0
  }

  func enableQueue(_ index: Int, _ layout: QueueLayout) {
    layouts[index] = layout
    if isRunning { try? harness?.start(index, layout) }
  }

  func resetQueue(_ index: Int) {
    harness?.stop(index)
    layouts[index] = nil
  }

  func notify(_ index: Int, data: UInt16) {
    notifications += 1
    if !isDeaf { harness?.kick(index) }
    if harness?.hasFailed(index) == true { bits.insert(.needsReset) }
    afterNotify()
  }
}
