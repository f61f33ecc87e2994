public import DMA
public import DriverDMA
public import Virtio

/// Why a driver cannot go on, or a request failed.
public enum DriverError: Error, Hashable, Sendable {
  /// Another kind of device than the driver's.
  case wrongDevice(DeviceID)
  /// The device did not come out of its reset in the time allowed (§2.4.2).
  case reset(DeviceStatus)
  /// The device does not work with these features (§3.1.1, step 6).
  case features(Features)
  /// A feature that the driver cannot do without is not offered.
  case missing(Features)
  /// The platform lets no device in that lacks these features (R174).
  case restricted(missing: Features)
  /// VIRTIO_F_ACCESS_PLATFORM is not offered, and the platform's addresses are other ones than physical memory's
  /// (R175).
  case addressMismatch(guest: GuestAddress, mapped: DMAAddress)
  /// The device has no such queue.
  case noQueue(Int)
  /// Not even the smallest queue fits into one mapping (R176).
  case noRoom(bytes: UInt64, maximum: UInt64)
  /// The device gave up, and set DEVICE_NEEDS_RESET (§2.1.2).
  case needsReset
  /// The driver was stopped, or an error ended it: make a new one.
  case stopped
  /// Memory could not be mapped, or not be taken back.
  case dma(DMAError)
  /// The ring: full, or the device broke its rules.
  case queue(DriverQueueError)
  /// The device did not answer in the time allowed. The request's memory stays the device's until it does, or is reset
  /// (R179).
  case timeout
  /// A request needs so many descriptors, and has at most this many.
  case segments(Int, maximum: Int)
  /// The request makes no sense for this device: past its end, no whole sectors, an operation it does not offer.
  case request
  /// The device could not do it (§5.2.6, VIRTIO_BLK_S_IOERR).
  case ioError
  /// The device does not serve such requests (§5.2.6, VIRTIO_BLK_S_UNSUPP).
  case unsupported
  /// The device left an invalid status.
  case status(UInt8)
  /// The device says it is done, and wrote fewer bytes than that takes (§2.7.8).
  case incomplete(written: UInt32, needed: UInt64)
}
