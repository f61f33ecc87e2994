import ArgumentParser
import Glibc
import HostIO
import VhostUserBackend
import Virtio
import VirtioServing

/// The value of `--idle-latency`.
struct IdleLatencyArgument {
  var policy: IdleLatencyPolicy

  init(_ argument: String) throws {
    switch argument {
    case "auto": policy = .auto
    case "off": policy = .off
    default:
      guard let most = Int32(argument), most >= 0 else {
        throw ValidationError("'\(argument)' is not auto, off, or a number of microseconds from 0 to \(Int32.max)")
      }
      policy = .limit(most)
    }
  }

  init(_ policy: IdleLatencyPolicy) { self.policy = policy }
}

/// What a device speaks on its socket.
enum ServedProtocol: String, CaseIterable, ExpressibleByArgument {
  case vhostUser = "vhost-user"
  case vfioUser = "vfio-user"
}

/// The options that every virtio device has: the socket and the protocol, by vhost-user's conventions for back-end
/// programs.
struct SocketOptions: ParsableArguments {
  @Option(
    name: .customLong("socket-path"),
    help: ArgumentHelp(
      """
      Listen for vhost-user front-ends on a Unix socket at this path. The path must not exist, unless a back-end that \
      has ended left it behind.
      """,
      valueName: "path"),
    completion: .file())
  var socketPath: String?

  @OptionGroup var vfioUser: VfioUserPlace

  @Option(
    parsing: .unconditional,
    help: ArgumentHelp(
      """
      Use this open descriptor instead: a listening or a connected Unix socket. Without any of these options, use the \
      socket that the service manager passed (LISTEN_FDS).
      """,
      valueName: "number"))
  var fd: Int32?

  @Option(
    name: .customLong("protocol"),
    help: ArgumentHelp(
      """
      What is spoken on the socket of --fd or LISTEN_FDS, if it is not vhost-user. With --socket-path it is \
      vhost-user, with --vfio-user it is vfio-user.
      """,
      valueName: "vhost-user|vfio-user"))
  var spoken: ServedProtocol?

  @Option(
    name: [.customLong("access-platform"), .customLong("iommu-platform")],
    help: ArgumentHelp(
      """
      Whether to offer VIRTIO_F_ACCESS_PLATFORM, with which a driver gives the device the addresses of the guest's \
      IOMMU. Over vhost-user the device then goes through the IOMMU: if the front-end has one for it (auto); always, \
      and a front-end without one is refused (on); never, and the device can reach all guest memory (off). Over \
      vfio-user every access goes through the client's IOMMU: offered (auto); offered, and a driver that does not \
      accept it is refused (on); not offered, and behind an IOMMU in use every access of the device is refused (off).
      """,
      valueName: "auto|on|off"))
  var platform: AccessPlatformPolicy = .auto

  @Option(
    name: .customLong("disable-legacy"),
    help: ArgumentHelp(
      """
      Over vfio-user, whether the device is without the legacy interface: yes, if VIRTIO_F_ACCESS_PLATFORM is offered, \
      which its drivers cannot accept, or if there is none for such a device (auto, the default); always (on); never, \
      and the bit is not offered, so that behind an IOMMU in use the device does not work (off).
      """,
      valueName: "auto|on|off"))
  var disableLegacy: OnOffAuto?

  @Option(
    help: ArgumentHelp(
      """
      Over vhost-user, how long to keep a translation: until the front-end invalidates it (keep), or for one request (once), for \
      front-ends that do not pass unmaps on, such as QEMU with AMD-Vi. (default: keep)
      """,
      valueName: "keep|once"))
  var translations: TranslationPolicy?

  @Option(
    help: ArgumentHelp(
      """
      Whether to offer indirect descriptors (VIRTIO_F_INDIRECT_DESC): yes, except for a disk with --access-platform on \
      (auto); always (on); never (off). A guest with new IOMMU mappings for every request is faster without them, \
      because the indirect table is one more mapping to request; each request then takes one ring descriptor for each \
      of its pieces. Both back-ends of a migration need the same value.
      """,
      valueName: "auto|on|off"))
  var indirect: IndirectPolicy = .auto

  @Option(
    name: .customLong("idle-latency"),
    help: ArgumentHelp(
      """
      Over vhost-user, a limit on the wake-up latency of idle processors of this machine while translations come fast: a number of \
      microseconds, no limit (off), or 0 inside a virtual machine whose hypervisor stops idle processors and no limit \
      elsewhere (auto, the default). A limit makes translations faster, and costs power while they come. It needs \
      write access to /dev/cpu_dma_latency.
      """,
      valueName: "auto|off|microseconds"),
    transform: IdleLatencyArgument.init)
  var idleLatency: IdleLatencyArgument?

  @Flag(
    name: .customLong("no-packed"),
    help: "Offer split rings only, for front-ends that start packed rings wrongly (user-mode Linux).")
  var noPacked = false

  @Flag(help: "End when the first front-end or client disconnects, instead of waiting for the next one.")
  var once = false

  @OptionGroup var program: ProgramOptions

  /// What is spoken.
  var served: ServedProtocol { spoken ?? (vfioUser.path == nil ? .vhostUser : .vfioUser) }

  /// Refuses options that exclude each other, by name, before anything is done.
  func check() throws {
    if socketPath != nil, vfioUser.path != nil {
      throw Failure.usage("--socket-path and --vfio-user exclude each other; give one of them")
    }
    switch served {
    case .vfioUser:
      if socketPath != nil {
        throw Failure.usage("--socket-path is for vhost-user; give --vfio-user PATH, or omit --protocol vfio-user")
      }
      let others = [("--translations", translations != nil), ("--idle-latency", idleLatency != nil)]
      if let (option, _) = others.first(where: \.1) {
        throw Failure.usage("\(option) is for vhost-user, whose translations are asked for; omit it with vfio-user")
      }
      if platform == .on, disableLegacy == .off {
        throw Failure.usage(
          "\(Self.platformOption) on and --disable-legacy off exclude each other: a legacy driver cannot see feature bit 33; "
            + "omit one of them")
      }
    case .vhostUser:
      if vfioUser.path != nil {
        throw Failure.usage("--vfio-user and --protocol vhost-user exclude each other; omit one of them")
      }
      if vfioUser.doorbells != nil {
        throw Failure.usage("--doorbells is for vfio-user; over vhost-user the front-end kicks by eventfd")
      }
      if disableLegacy != nil {
        throw Failure.usage(
          "--disable-legacy is for vfio-user; over vhost-user the front-end shows the device (QEMU: its property "
            + "disable-legacy)")
      }
    }
  }

  /// The option of ``platform`` by the name that was typed.
  static var platformOption: String {
    CommandLine.arguments.contains { $0.split(separator: "=").first == "--iommu-platform" }
      ? "--iommu-platform" : "--access-platform"
  }

  /// The socket, for `explain`.
  var place: ReportFact { Self.fact(served == .vfioUser ? vfioUser.path : socketPath, fd, served) }

  static func fact(_ path: String?, _ fd: Int32?, _ spoken: ServedProtocol) -> ReportFact {
    let words = path ?? fd.map { "descriptor \($0)" } ?? "the one passed by LISTEN_FDS"
    return ReportFact("socket", "\(words) (\(spoken.rawValue))", ["socket": .text(words)])
  }

  /// Opens the socket that the options name. Call it last: it creates a file, and an earlier error must leave none
  /// behind.
  func open() throws -> InheritedSocket {
    served == .vfioUser
      ? try Self.open(path: vfioUser.path, option: "--vfio-user", fd: fd)
      : try Self.open(path: socketPath, option: "--socket-path", other: " or --vfio-user PATH", fd: fd)
  }

  /// The socket at a path that `option` names, or an open descriptor, or the one that the service manager passed.
  ///
  /// - Parameter other: another option that names one, for the sentence that says which there are.
  static func open(path: String?, option: String, other: String = "", fd: Int32?) throws -> InheritedSocket {
    let passed = passedDescriptors()
    switch (path, fd) {
    case (.some, .some):
      throw Failure.usage("\(option) and --fd exclude each other; give one of them")
    case (.some(let path), nil):
      guard !path.isEmpty else { throw Failure.usage("\(option) is empty; give the path of the socket to create") }
      do {
        return .listening(try UnixListener(path: path))
      } catch {
        throw failure(error, path, option)
      }
    case (nil, .some(let number)):
      guard number != 1, number != 2 else {
        throw Failure.usage("--fd \(number) is this command's own output; pass the socket as descriptor 3 or above")
      }
      return try adopt(number, "--fd \(number)")
    case (nil, nil):
      guard let number = passed.first else {
        throw Failure.usage("no socket; give \(option) PATH\(other), or --fd NUMBER for a socket that is already open")
      }
      guard passed.count == 1 else {
        throw Failure.usage("LISTEN_FDS passes \(passed.count) sockets; pass one, because a device has one front-end")
      }
      return try adopt(number, "the socket passed with LISTEN_FDS")
    }
  }

  private static func adopt(_ number: Int32, _ what: String) throws -> InheritedSocket {
    do {
      return try InheritedSocket(passed: number)
    } catch {
      throw Failure.usage(
        "\(what) is not an open Unix stream socket (\(error.reason)); pass a listening or a connected one")
    }
  }

  private static func failure(_ error: HostError, _ path: String, _ option: String) -> Failure {
    switch error.errno {
    case .addressInUse:
      .host("\(path) is busy: another process listens on it; stop that process, or choose another \(option)")
    case .fileExists: .host("\(path) exists and is not a socket; choose another \(option)")
    case .fileNameTooLong:
      .usage("\(path) is too long for a socket (107 bytes); choose a shorter \(option)")
    case .noSuchFileOrDirectory, .notDirectory:
      .host("the directory of \(path) does not exist; create it or choose another \(option)")
    case .permissionDenied, .notPermitted:
      .host("this user may not create \(path) (\(error.reason)); choose another \(option)")
    default: .host("cannot listen on \(path): \(error.reason)")
    }
  }

  /// The descriptors that a service manager passed (LISTEN_PID, LISTEN_FDS): from 3 on.
  private static func passedDescriptors() -> [Int32] {
    func variable(_ name: String) -> Int32? { Environment.value(of: name).flatMap { Int32($0) } }
    guard let count = variable("LISTEN_FDS"), count > 0, count < 64, let process = variable("LISTEN_PID"),
      process == getpid()
    else { return [] }
    return (0..<count).map { 3 + $0 }
  }
}
