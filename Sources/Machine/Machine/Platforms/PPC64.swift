extension Platform {
  /// PPC64 (pseries, TCE tables).
  public static let ppc64: Platform = {
    var platform = Platform(
      name: "ppc64", summary: "PPC64 (pseries, TCE tables)",
      origin: "There is always an IOMMU in front of PCI devices, and hosts older than the bit ignore it for virtio.")
    platform.unit = .tce
    platform.isBigEndian = true
    platform.buses = [.pci]
    return platform
  }()
}
