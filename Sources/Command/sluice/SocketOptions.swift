import ArgumentParser
import Glibc
import HostIO
import VhostUserBackend
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

/// The options that every device has: the socket and the protocol, by vhost-user's conventions for back-end programs.
struct SocketOptions: ParsableArguments {
  @Option(
    name: .customLong("socket-path"),
    help: ArgumentHelp(
      "Listen on a Unix socket at this path. The path must not exist, unless a back-end that has ended left it behind.",
      valueName: "path"),
    completion: .file())
  var socketPath: String?

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
    name: .customLong("access-platform"),
    help: ArgumentHelp(
      """
      Whether the device goes through the guest's IOMMU: if the front-end has one for it (auto); always, and a \
      front-end without one is refused (on); never, and the device can reach all guest memory (off).
      """,
      valueName: "auto|on|off"))
  var platform: AccessPlatformPolicy = .auto

  @Option(
    help: ArgumentHelp(
      """
      How long to keep a translation: until the front-end invalidates it (keep), or for one request (once), for \
      front-ends that do not pass unmaps on, such as QEMU with AMD-Vi.
      """,
      valueName: "keep|once"))
  var translations: TranslationPolicy = .keep

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
      Limit on the wake-up latency of idle processors of this machine while translations come fast: a number of \
      microseconds, no limit (off), or 0 inside a virtual machine whose hypervisor stops idle processors and no limit \
      elsewhere (auto, the default). A limit makes translations faster, and costs power while they come. It needs \
      write access to /dev/cpu_dma_latency.
      """,
      valueName: "auto|off|microseconds"),
    transform: IdleLatencyArgument.init)
  var idleLatency = IdleLatencyArgument(.auto)

  @Flag(
    name: .customLong("no-packed"),
    help: "Offer split rings only, for front-ends that start packed rings wrongly (user-mode Linux).")
  var noPacked = false

  @Flag(help: "End when the first front-end disconnects, instead of waiting for the next one.")
  var once = false

  @OptionGroup var program: ProgramOptions

  /// The socket, for `explain`.
  var place: ReportFact {
    let words = socketPath ?? fd.map { "descriptor \($0)" } ?? "the one passed by LISTEN_FDS"
    return ReportFact("socket", words, ["socket": .text(words)])
  }

  /// Opens the socket that the options name. Call it last: it creates a file, and an earlier error must leave none
  /// behind.
  func open() throws -> InheritedSocket { try Self.open(path: socketPath, option: "--socket-path", fd: fd) }

  /// The socket at a path that `option` names, or an open descriptor, or the one that the service manager passed.
  static func open(path: String?, option: String, fd: Int32?) throws -> InheritedSocket {
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
        throw Failure.usage("no socket; give \(option) PATH, or --fd NUMBER for a socket that is already open")
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
