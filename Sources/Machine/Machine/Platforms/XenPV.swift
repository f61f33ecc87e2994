extension Platform {
  /// A Xen guest whose physical addresses are not the machine's.
  public static let xenPV: Platform = {
    var platform = Platform(
      name: "xen-pv", summary: "a Xen guest whose physical addresses are not the machine's",
      origin:
        "On Xen the guest's physical addresses mean nothing outside: its drivers use the platform's mapper, with or without the bit."
    )
    platform.reach = .machineAddresses
    platform.isXen = true
    return platform
  }()
}
