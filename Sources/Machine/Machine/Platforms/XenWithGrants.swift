extension Platform {
  /// A Xen guest that grants its pages.
  public static let xenGrants: Platform = {
    var platform = Platform(
      name: "xen-grants", summary: "a Xen guest that grants its pages",
      origin: "A back-end in another domain reaches only pages granted to it, so its devices must offer the bit.")
    platform.unit = .grants
    platform.isXen = true
    platform.isRestricted = true
    platform.hasNVMe = false
    return platform
  }()
}
