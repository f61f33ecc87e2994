extension Platform {
  /// SPARC64 (sun4u).
  public static let sparc64: Platform = {
    var platform = Platform(
      name: "sparc64", summary: "SPARC64 (sun4u)",
      origin:
        "Firmware says that virtio devices are behind the IOMMU, and hosts older than the bit ignore it: without the bit, drivers bypass it."
    )
    platform.unit = .sun4u
    platform.isBigEndian = true
    platform.buses = [.pci]
    return platform
  }()
}
