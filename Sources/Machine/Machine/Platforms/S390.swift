extension Platform {
  /// S390-like: the bit is offered, nothing translates.
  public static let s390: Platform = {
    var platform = Platform(
      name: "s390", summary: "s390-like: the bit is offered, nothing translates",
      origin: "Devices use guest addresses, and still have to offer the bit to protected guests.")
    platform.hasNVMe = false
    platform.isBigEndian = true
    return platform
  }()
}
