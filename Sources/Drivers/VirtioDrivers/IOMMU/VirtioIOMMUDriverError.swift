public import DMA
public import Virtio

/// Why an IOMMU's driver cannot start, or a request was not done.
public enum VirtioIOMMUDriverError: Error, Hashable, Sendable {
  /// Another kind of device.
  case notAnIOMMU(DeviceID)
  /// The device does not offer what the driver cannot do without: VIRTIO_F_VERSION_1 and VIRTIO_IOMMU_F_MAP_UNMAP.
  case missingFeatures(Features)
  /// The device did not take what the driver accepted.
  case featuresRefused(Features)
  /// The platform does not let the device in, or has no memory for its driver.
  case platform(DriverError)
  /// The device has no such queue, or one of no size.
  case noQueue(Int)
  /// Its configuration makes no sense, or asks for more than 64 KiB of properties.
  case configuration
  /// The driver's own memory is not all in one region, or is not there.
  case memory(GuestAddress)
  /// An error of the queue, or of the device's use of it. The device has to be reset.
  case queue(DriverQueueError)
  /// The device did not answer in time. It still has the request's memory, so it has to be reset.
  case timeout
  /// An earlier error has ended the driver's work.
  case stopped
  /// The device gave the request back without a status: it could not make anything of it.
  case notRecognized
  /// The device refused.
  case refused(IOMMUStatus)
  /// Not negotiated.
  case unsupported(Features)
  /// An impossible range: no bytes, or more than there are after the address.
  case range
}
