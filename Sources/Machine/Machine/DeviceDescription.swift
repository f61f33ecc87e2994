public import DeviceCatalog
public import Virtio

/// The description of a device of a machine.
public struct DeviceDescription: Hashable, Sendable {
  /// What it is called in reports.
  public var name: String
  public var kind: DeviceKind
  public var interface = Interface.modern
  /// `iommu_platform`; for what is not virtio, nothing (R080).
  public var property = OnOffAuto.off
  /// A host from before the property.
  public var host = HostAge.new
  /// What the driver accepts.
  public var acknowledgement = Acknowledgement.all
  /// How the platform's IOMMU is set up for it.
  public var state = UnitState.none
  public var ring = RingKind.split
  public var descriptors = DescriptorKind.indirect
  /// The image of a disk; nil: memory of ``byteCount`` bytes.
  public var image: String?
  /// Bytes of a disk without an image.
  public var byteCount = 16 << 20
  /// When the IOMMU forgets what was unmapped: at each unmap, or after so many.
  public var flushBatch = 1

  public init(name: String, kind: DeviceKind) {
    self.name = name
    self.kind = kind
    if !kind.isVirtio { interface = .nvme }
  }
}
