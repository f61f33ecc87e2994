/// Whose addresses a device is given: the one place where bit 33 is read.
@frozen public enum AddressPath: Hashable, Sendable {
  /// Through the platform: an address means what an IOMMU, its absence or another limit makes of it (§6,
  /// VIRTIO_F_ACCESS_PLATFORM).
  case platform
  /// Guest-physical addresses, past any IOMMU of the platform.
  case physical

  /// The path that a set of negotiated features selects. Offered features decide nothing.
  public init(negotiated: Features) {
    self = negotiated.contains(.accessPlatform) ? .platform : .physical
  }
}
