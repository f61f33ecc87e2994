extension Platform {
  /// A PC with Intel VT-d.
  public static let pcVTd: Platform = {
    var platform = Platform(
      name: "pc-vtd", summary: "a PC with Intel VT-d",
      origin:
        "The unit is in front of every PCI function, and the feature bit says whether a virtio device goes through it.")
    platform.unit = .vtd
    return platform
  }()
}
