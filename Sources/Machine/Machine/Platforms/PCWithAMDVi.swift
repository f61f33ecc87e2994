extension Platform {
  /// A PC with AMD-Vi.
  public static let pcAMDVi: Platform = {
    var platform = Platform(
      name: "pc-amd-vi", summary: "a PC with AMD-Vi",
      origin:
        "The same decision as with VT-d, in front of another unit: it must not depend on the format of the tables."
    )
    platform.unit = .amdvi
    return platform
  }()
}
