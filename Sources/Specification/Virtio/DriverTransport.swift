/// A device as its driver reaches it, on any bus (§4). A driver's thread uses it; no two at once.
public protocol DriverTransport: AnyObject {
  /// What kind of device it is.
  var deviceID: DeviceID { get }
  /// The device status field (§2.1). Writing the empty set resets the device; the reset is over when the empty set is
  /// read back.
  var status: DeviceStatus { get set }
  /// What the device offers (§2.2).
  var deviceFeatures: Features { get }
  /// Tells the device what the driver accepts; it counts when FEATURES_OK is set and stays set (§3.1.1).
  func accept(_ features: Features)
  /// Changes whenever the configuration may have changed in a way that a read of several fields could see halfway
  /// (§2.5.1).
  var configurationGeneration: UInt32 { get }
  /// Fills `bytes` from the configuration space. Bytes past its end read as anything.
  func readConfiguration(at offset: Int, into bytes: inout MutableSpan<UInt8>)
  /// Writes to the configuration space.
  func writeConfiguration(at offset: Int, from bytes: Span<UInt8>)
  /// The most descriptors a queue may have; 0 where there is no such queue.
  func maxQueueSize(_ index: Int) -> UInt16
  /// Whether a queue has to be as large as ``maxQueueSize(_:)`` says: the legacy interface of PCI has no way to choose
  /// (§4.1.5.1.3.1).
  var hasFixedQueueSizes: Bool { get }
  /// Gives a queue to the device. What its addresses mean follows from the negotiated features: see ``AddressPath``.
  func enableQueue(_ index: Int, _ layout: QueueLayout)
  /// Takes one queue back (§2.6.1), where VIRTIO_F_RING_RESET is negotiated; returns when the device no longer uses it.
  func resetQueue(_ index: Int)
  /// An available buffer notification (§2.9).
  ///
  /// - Parameter data: where VIRTIO_F_NOTIFICATION_DATA is negotiated, what goes into the upper half: see
  ///   `DriverQueue.notificationData`.
  func notify(_ index: Int, data: UInt16)
}

extension DriverTransport {
  public var hasFixedQueueSizes: Bool { false }
}
