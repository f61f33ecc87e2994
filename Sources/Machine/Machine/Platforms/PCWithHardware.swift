extension Platform {
  /// A physical virtio device behind VT-d.
  public static let pcHardware: Platform = {
    var platform = Platform(
      name: "pc-hardware", summary: "a physical virtio device behind VT-d",
      origin:
        "A physical device that speaks virtio is behind the physical IOMMU, with or without the bit: without it, it cannot work there."
    )
    platform.unit = .vtd
    platform.devicesAreHardware = true
    platform.buses = [.pci]
    return platform
  }()
}
