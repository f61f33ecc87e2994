import ArgumentParser
import HostIO
import VfioUser
import VirtioServing

/// Where a device is served over vfio-user.
struct VfioUserPlace: ParsableArguments {
  @Option(
    name: .customLong("vfio-user"),
    help: ArgumentHelp(
      """
      Listen for vfio-user clients on a Unix socket at this path. The path must not exist, unless a server that has \
      ended left it behind.
      """,
      valueName: "path"),
    completion: .file())
  var path: String?

  @Option(
    help: ArgumentHelp(
      """
      Over vfio-user, how doorbells reach the device: each is a message (messages, the default), or they are in memory \
      that the client maps (shared). Nothing wakes the device for those in memory, so it looks for them: all the time \
      while they come, then less and less often, up to 4 ms apart, which costs some processor time even while the \
      guest is idle.
      """,
      valueName: "messages|shared"))
  var doorbells: DoorbellPolicy?
}

/// The options of a device that is served over vfio-user alone.
struct VfioUserOptions: ParsableArguments {
  @OptionGroup var place: VfioUserPlace

  @Option(
    parsing: .unconditional,
    help: ArgumentHelp(
      """
      Use this open descriptor instead: a listening or a connected Unix socket. Without either option, use the socket \
      that the service manager passed (LISTEN_FDS).
      """,
      valueName: "number"))
  var fd: Int32?

  @Option(
    name: .customLong("protocol"),
    help: ArgumentHelp("What is spoken: vfio-user, which is all that there is for this device.", valueName: "vfio-user")
  )
  var spoken: ServedProtocol = .vfioUser

  @Flag(help: "End when the first client disconnects, instead of waiting for the next one.")
  var once = false

  @OptionGroup var program: ProgramOptions

  // Options of virtio devices, to say why they are none here.
  @Option(name: .customLong("socket-path"), help: .hidden) var socketPath: String?
  @Option(name: [.customLong("access-platform"), .customLong("iommu-platform")], help: .hidden) var platform: String?
  @Option(name: .customLong("disable-legacy"), help: .hidden) var legacy: String?

  /// Refuses options of other devices, by name, before anything is done.
  func check() throws {
    if socketPath != nil || spoken != .vfioUser {
      throw Failure.usage(
        "\(socketPath != nil ? "--socket-path" : "--protocol \(spoken.rawValue)") is for virtio devices: this one is "
          + "served over vfio-user only; give --vfio-user PATH")
    }
    if platform != nil || legacy != nil {
      let option = platform != nil ? SocketOptions.platformOption : "--disable-legacy"
      throw Failure.usage(
        "\(option) is for virtio devices: this one has no such feature bit, and the client's IOMMU alone governs it; "
          + "omit it")
    }
  }

  /// Opens the socket that the options name.
  func open() throws -> InheritedSocket {
    try SocketOptions.open(path: place.path, option: "--vfio-user", fd: fd)
  }

  /// The socket, for `explain`.
  var socketFact: ReportFact { SocketOptions.fact(place.path, fd, .vfioUser) }
}
