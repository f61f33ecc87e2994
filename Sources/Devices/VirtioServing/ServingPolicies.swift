/// Whether a device's addresses go through the front-end's IOMMU.
public enum AccessPlatformPolicy: String, Hashable, Sendable, CaseIterable {
  /// VIRTIO_F_ACCESS_PLATFORM is offered; the front-end takes it when an IOMMU is in front of the device.
  case auto
  /// It is offered, and a front-end that does not take it is refused.
  case on
  /// It is not offered: the device reaches all of the guest's memory.
  case off
}

/// How long a translation is kept.
public enum TranslationPolicy: String, Hashable, Sendable, CaseIterable {
  /// Until the front-end takes it back.
  case keep
  /// For one request: the next one asks anew. For a front-end that does not pass unmaps on, as QEMU's AMD-Vi.
  case once
}
