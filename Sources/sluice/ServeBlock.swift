import ArgumentParser
import Glibc
import HostIO
import Logging
import VirtioDevices

/// `sluice serve blk`.
struct ServeBlock: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "blk",
    abstract: "Serve a virtio-blk device: a disk whose contents are a file or a block device.",
    discussion: "The image is raw. It is locked against a second writer as long as the command runs.")

  @OptionGroup var socket: SocketOptions

  @Option(
    name: [.customLong("blk-file"), .customLong("image")],
    help: ArgumentHelp("The disk image: a raw file or a block device.", valueName: "path"))
  var image: String?

  @Flag(name: .customLong("read-only"), help: "Let nobody change the image.")
  var readOnly = false

  @Option(name: .customLong("num-queues"), help: ArgumentHelp("Request queues, each with a thread of its own: 1 to 256.", valueName: "number"))
  var queueCount = 1

  @Option(
    name: .customLong("queue-size"),
    help: ArgumentHelp("The most descriptors a queue may have: 2 to 32768.", valueName: "number"))
  var queueSize: UInt16 = 1024

  @Option(help: ArgumentHelp("The disk's serial number: up to 20 printable ASCII characters.", valueName: "text"))
  var serial = ""

  @Option(
    name: .customLong("logical-block-size"),
    help: ArgumentHelp("The block size the guest sees: a power of two, 512 to 65536. Default: the image's own.", valueName: "bytes"))
  var logicalBlockSize: Int?

  @Flag(help: "Go around the host's page cache (O_DIRECT).")
  var direct = false

  @Option(
    help: ArgumentHelp(
      "When a completed write is on stable storage: once it is flushed (writeback) or at once (writethrough). The guest may choose otherwise.",
      valueName: "writeback|writethrough"))
  var cache: CacheArgument = .writeback

  @Option(help: ArgumentHelp("How the image is read and written: auto, uring (many requests at once), sync (one after the other).", valueName: "auto|uring|sync"))
  var engine: EngineArgument = .auto

  func run() throws {
    if socket.printCapabilities { return printCapabilities(type: "block", features: ["read-only", "blk-file"]) }
    guard let image else { throw Failure.usage("no disk image; give --blk-file PATH") }
    try serve("blk", socket) { log in
      var options = BlockOptions(path: image)
      options.readOnly = readOnly
      options.direct = direct
      options.queueCount = queueCount
      options.queueSize = queueSize
      options.serial = serial
      options.logicalBlockSize = logicalBlockSize
      options.writeback = cache == .writeback
      options.engine = engine.engine
      options.report = { log.warning("\($0)") }
      do throws(BlockDeviceError) {
        return try BlockDevice(options)
      } catch {
        throw Self.failure(error, image)
      }
    }
  }

  private static func failure(_ error: BlockDeviceError, _ path: String) -> Failure {
    switch error {
    case .option(let name, let rule):
      let option =
        switch name {
        case "queueCount": "--num-queues"
        case "queueSize": "--queue-size"
        case "logicalBlockSize": "--logical-block-size"
        case "serial": "--serial"
        default: name
        }
      return .usage("\(option) \(rule)")
    case .image(let host):
      switch host.errno {
      case ENOENT: return .host("there is no image \(path); create one, with `truncate -s 1G \(path)` say, or correct --blk-file")
      case EISDIR: return .host("\(path) is a directory; --blk-file needs a raw image file or a block device")
      case EBUSY, EAGAIN: return .host("\(path) is in use by another process that locked it; stop that one, or serve it with --read-only on both sides")
      case EACCES, EPERM, EROFS: return .host("\(path) may not be opened for writing (\(host.reason)); give access to it, or add --read-only")
      case EINVAL: return .host("\(path) cannot be served: \(host.reason); with --direct, its file system may not support O_DIRECT")
      default: return .host("\(path) cannot be opened: \(host.reason)")
      }
    }
  }
}

/// The two words of `--cache`.
enum CacheArgument: String, CaseIterable, ExpressibleByArgument { case writeback, writethrough }

/// The three words of `--engine`.
enum EngineArgument: String, CaseIterable, ExpressibleByArgument {
  case auto, uring, sync

  var engine: BlockEngine {
    switch self {
    case .auto: .automatic
    case .uring: .uring
    case .sync: .synchronous
    }
  }
}
