extension Platform {
  /// A PC without an IOMMU.
  public static let pc: Platform = {
    let platform = Platform(
      name: "pc", summary: "a PC without an IOMMU",
      origin: "Physical addresses match bus addresses: it does not matter which of the two a driver uses.")
    return platform
  }()
}
