extension Platform {
  /// Devices reach the shared pool alone, and drivers copy through it; a device that would ignore that is refused.
  public static let confidential: Platform = {
    var platform = Platform(
      name: "confidential", summary: "a confidential guest: only a pool is shared",
      origin:
        "Devices reach the shared pool alone, and drivers copy through it; a device that would ignore that is refused.")
    platform.reach = .pool
    platform.isRestricted = true
    return platform
  }()
}
