public import DriverDMA
public import Virtio

/// The driver of a kind of virtio device, over any transport.
public protocol VirtioDriver: DataDriver where Failure == DriverError {
  /// Takes the device over and starts its queues (§3.1.1).
  ///
  /// - Throws: what made the driver give up; the device's status is FAILED then, and no memory is left to it.
  init(_ transport: any DriverTransport, on platform: DriverPlatform, options: DriverOptions) throws(DriverError)
  /// What was negotiated.
  var features: Features { get }
}
