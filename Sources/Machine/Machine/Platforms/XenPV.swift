extension Platform {
  /// On Xen the guest's physical addresses mean nothing outside: its drivers ask the platform, bit or no bit.
  public static let xenPV: Platform = {
    var platform = Platform(
      name: "xen-pv", summary: "a Xen guest whose physical addresses are not the machine's",
      origin: "On Xen the guest's physical addresses mean nothing outside: its drivers ask the platform, bit or no bit."
    )
    platform.reach = .machineAddresses
    platform.isXen = true
    return platform
  }()
}
