import ArgumentParser
import Glibc
import HostIO
import VhostUser

/// The three words of `--access-platform`.
enum PlatformArgument: String, CaseIterable, ExpressibleByArgument {
  case auto, on, off

  var policy: AccessPlatformPolicy {
    switch self {
    case .auto: .auto
    case .on: .on
    case .off: .off
    }
  }
}

/// What `--idle-latency` may be.
struct IdleLatencyArgument {
  var policy: IdleLatencyPolicy

  init(_ argument: String) throws {
    switch argument {
    case "auto": policy = .auto
    case "off": policy = .off
    default:
      guard let most = Int32(argument), most >= 0 else {
        throw ValidationError("'\(argument)' is none of auto, off, and a number of microseconds from 0 to \(Int32.max)")
      }
      policy = .limit(most)
    }
  }

  init(_ policy: IdleLatencyPolicy) { self.policy = policy }
}

/// The three words of `--indirect`.
enum IndirectArgument: String, CaseIterable, ExpressibleByArgument {
  case auto, on, off

  var policy: IndirectPolicy {
    switch self {
    case .auto: .auto
    case .on: .on
    case .off: .off
    }
  }
}

/// The two words of `--translations`.
enum TranslationsArgument: String, CaseIterable, ExpressibleByArgument {
  case keep, once

  var policy: TranslationPolicy { self == .keep ? .keep : .once }
}

/// Where the front-end is, after the conventions for vhost-user back-end programs.
struct SocketOptions: ParsableArguments {
  @Option(
    name: .customLong("socket-path"),
    help: ArgumentHelp(
      "Listen on a Unix socket at this path; it must not exist, or be left over from a back-end that ended.",
      valueName: "path"),
    completion: .file())
  var socketPath: String?

  @Option(
    parsing: .unconditional,
    help: ArgumentHelp(
      "Use this open descriptor instead: a listening Unix socket or a connected one. Without either, what a service manager passed (LISTEN_FDS) is used.",
      valueName: "number"))
  var fd: Int32?

  @Option(
    name: .customLong("access-platform"),
    help: ArgumentHelp(
      "Whether the device goes through the guest's IOMMU: when the front-end has one (auto), always, so that a front-end without is refused (on), or never, so that all memory is reached (off).",
      valueName: "when"))
  var platform: PlatformArgument = .auto

  @Option(
    help: ArgumentHelp(
      "How long a translation is kept: until the front-end takes it back (keep), or for one request (once), for front-ends that do not pass unmaps on, as QEMU's AMD-Vi.",
      valueName: "how-long"))
  var translations: TranslationsArgument = .keep

  @Option(
    help: ArgumentHelp(
      "Whether requests may have a table of descriptors of their own (VIRTIO_F_INDIRECT_DESC): unless --access-platform is on and the device is a disk (auto), always (on), or never (off). A guest that maps anew for every request is faster without, since the table is one more mapping to ask for; a request then takes as many of the ring's descriptors as it has pieces. Back-ends between which a guest migrates need the same.",
      valueName: "when"))
  var indirect: IndirectArgument = .auto

  @Option(
    name: .customLong("idle-latency"),
    help: ArgumentHelp(
      "How long an idle processor of this machine may take to wake while translations come fast. auto, which is the default: no time at all inside a virtual machine whose hypervisor stops idle processors, elsewhere as long as it takes; off: as long as it takes; or a number of microseconds. It saves the wake-ups of which a translation consists, and takes power for as long as translations come. It needs write access to /dev/cpu_dma_latency.",
      valueName: "auto|off|microseconds"),
    transform: IdleLatencyArgument.init)
  var idleLatency = IdleLatencyArgument(.auto)

  @Flag(
    name: .customLong("no-packed"),
    help: "Offer split rings only: for a front-end that starts packed ones wrongly (user-mode Linux).")
  var noPacked = false

  @Flag(help: "End when the first front-end disconnects, instead of waiting for the next.")
  var once = false

  @Option(
    name: .customLong("log-level"),
    help: ArgumentHelp("What to tell on standard error: this and what is worse.", valueName: "level"))
  var logLevel: LogLevel = .info

  @Option(
    name: .customLong("log-format"),
    help: ArgumentHelp(
      "How lines of the log are written: for people (text), or an object of JSON each (json).", valueName: "text|json"))
  var logFormat: LogFormat = .text

  @Flag(
    name: .customLong("print-capabilities"),
    help: "Print what this program can do, as JSON, and exit; the other options are ignored.")
  var printCapabilities = false

  /// Where it serves, for `explain`.
  var place: BackendFact {
    let words = socketPath ?? fd.map { "descriptor \($0)" } ?? "the one that was passed by LISTEN_FDS"
    return BackendFact("socket", words, ["socket": .text(words)])
  }

  /// Opens the one place that was named. Nothing is created before everything else is in order: call it last.
  func open() throws -> InheritedSocket {
    let passed = Self.passedDescriptors()
    switch (socketPath, fd) {
    case (.some, .some):
      throw Failure.usage("--socket-path and --fd exclude each other; give one of them")
    case (.some(let path), nil):
      guard !path.isEmpty else { throw Failure.usage("--socket-path is empty; give the path of the socket to make") }
      do {
        return .listening(try UnixListener(path: path))
      } catch {
        throw Self.failure(error, path)
      }
    case (nil, .some(let number)):
      guard number != 1, number != 2 else {
        throw Failure.usage("--fd \(number) is where this command writes; pass the socket as 3 or above")
      }
      return try Self.adopt(number, "--fd \(number)")
    case (nil, nil):
      guard let number = passed.first else {
        throw Failure.usage(
          "nowhere to serve; give --socket-path PATH, or --fd NUMBER for a socket that is open already")
      }
      guard passed.count == 1 else {
        throw Failure.usage("LISTEN_FDS passes \(passed.count) sockets; pass one, a device has one front-end")
      }
      return try Self.adopt(number, "the socket passed with LISTEN_FDS")
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

  private static func failure(_ error: HostError, _ path: String) -> Failure {
    switch error.errno {
    case .addressInUse: .host("\(path) is busy: another process listens there; stop it or choose another --socket-path")
    case .fileExists: .host("\(path) exists and is not a socket; choose another --socket-path")
    case .fileNameTooLong:
      .usage("\(path) is longer than a socket's path may be (107 bytes); choose a shorter --socket-path")
    case .noSuchFileOrDirectory, .notDirectory:
      .host("the directory of \(path) does not exist; create it or choose another --socket-path")
    case .permissionDenied, .notPermitted:
      .host("\(path) may not be created by this user (\(error.reason)); choose another --socket-path")
    default: .host("cannot listen on \(path): \(error.reason)")
    }
  }

  /// What a service manager passed (LISTEN_PID, LISTEN_FDS): descriptors from 3 on.
  private static func passedDescriptors() -> [Int32] {
    func variable(_ name: String) -> Int32? { Environment.value(of: name).flatMap { Int32($0) } }
    guard let count = variable("LISTEN_FDS"), count > 0, count < 64, let process = variable("LISTEN_PID"),
      process == getpid()
    else { return [] }
    return (0..<count).map { 3 + $0 }
  }
}
