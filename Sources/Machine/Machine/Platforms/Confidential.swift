extension Platform {
  /// A confidential guest: only a pool is shared.
  public static let confidential: Platform = {
    var platform = Platform(
      name: "confidential", summary: "a confidential guest: only a pool is shared",
      origin:
        "Devices reach only the shared pool, and drivers copy through it; a device without the bit is refused.")
    platform.reach = .pool
    platform.isRestricted = true
    return platform
  }()
}
