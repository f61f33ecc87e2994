import ArgumentParser
import Glibc
import HostIO
import Logging
import VirtioDevices

/// `sluice serve blk`.
struct ServeBlock: DeviceCommand {
  static let configuration = CommandConfiguration(
    commandName: "blk",
    abstract: "Serve a virtio-blk device: a disk whose contents are a file or a block device.",
    usage: "sluice serve blk --blk-file <path> --socket-path <path> [<options>]",
    discussion: """
      The image is raw. As long as the command runs it is locked, with QEMU's locks: one writer, or any number of readers. Where \
      a machine is to migrate live to another back-end with the same image, both are started with --lock running. A file that becomes longer or shorter is a disk that does: the guest is told.
      """)
  static let capabilities = (type: "block", features: ["read-only", "blk-file"])

  @Option(
    name: [.customLong("blk-file"), .customLong("image")],
    help: ArgumentHelp("The disk image: a raw file or a block device.", valueName: "path"), completion: .file())
  var image: String?

  @Flag(name: .customLong("read-only"), help: "Let nobody change the image.")
  var readOnly = false

  @Option(
    name: .customLong("num-queues"), parsing: .unconditional,
    help: ArgumentHelp("Request queues, each with a thread of its own: 1 to 256.", valueName: "number"))
  var queueCount = 1

  @Option(
    name: .customLong("queue-size"), parsing: .unconditional,
    help: ArgumentHelp("The most descriptors a queue may have: 2 to 32768. A front-end that wants more is refused; QEMU wants 128.", valueName: "number"))
  var queueSize = 1024

  @Option(help: ArgumentHelp("The disk's serial number: up to 20 printable ASCII characters.", valueName: "text"))
  var serial = ""

  @Option(
    name: .customLong("logical-block-size"), parsing: .unconditional,
    help: ArgumentHelp("The block size the guest sees: a power of two, 512 to 65536. (default: the image's own)", valueName: "bytes"))
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

  @Option(
    help: ArgumentHelp(
      "When the image is locked: as long as the command runs (always), or while a guest uses the disk (running), so that the back-end a guest migrates to can be started beside the one it leaves.",
      valueName: "always|running"))
  var lock: LockArgument = .always

  @OptionGroup var socket: SocketOptions

  func run() throws {
    guard let image, !image.isEmpty else { throw Failure.usage("no disk image; give --blk-file PATH") }
    guard let size = UInt16(exactly: queueSize) else { throw Failure.usage("--queue-size must be 2 to 32768, not \(queueSize)") }
    try serve("blk", socket) { log in
      var options = BlockOptions(path: image)
      options.readOnly = readOnly
      options.direct = direct
      options.queueCount = queueCount
      options.queueSize = size
      options.serial = serial
      options.logicalBlockSize = logicalBlockSize
      options.writeback = cache == .writeback
      options.engine = engine.engine
      options.lock = lock == .running ? .running : .always
      options.report = { log.warning("\($0)") }
      let disk: BlockDevice
      do throws(BlockDeviceError) {
        disk = try BlockDevice(options)
      } catch {
        throw Self.failure(error, image, readOnly: readOnly)
      }
      guard disk.byteCount > 0 else {
        throw Failure.host("\(image) has no room for a single block; give it a size, with `truncate -s 1G \(image)` say")
      }
      return disk
    }
  }

  private static func failure(_ error: BlockDeviceError, _ path: String, readOnly: Bool) -> Failure {
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
      case ENOTBLK: return .host("\(path) is neither a file nor a block device; --blk-file needs one of them")
      case EACCES where readOnly, EPERM where readOnly: return .host("\(path) may not be read by this user; give access to it")
      case EACCES, EPERM, EROFS: return .host("\(path) may not be opened for writing (\(host.reason)); give access to it, or add --read-only")
      case EINVAL where host.call == "open O_DIRECT":
        return .host("the size of \(path) is no multiple of the block that --direct needs; round it up with `truncate -s %4096 \(path)`, or leave --direct out")
      case ENOTSUP where host.call == "open O_DIRECT": return .host("the file system of \(path) has no O_DIRECT; leave --direct out")
      default: return .host("\(path) cannot be opened: \(host.reason)")
      }
    }
  }
}

/// The two words of `--cache`.
enum CacheArgument: String, CaseIterable, ExpressibleByArgument { case writeback, writethrough }

/// The two words of `--lock`.
enum LockArgument: String, CaseIterable, ExpressibleByArgument { case always, running }

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
