extension Platform {
  /// A PC with virtio-iommu.
  public static let pcVirtioIOMMU: Platform = {
    var platform = Platform(
      name: "pc-virtio-iommu", summary: "a PC with virtio-iommu",
      origin: "The unit is a virtio device itself, which never translates its own queues.")
    platform.unit = .virtioIOMMU
    return platform
  }()
}
