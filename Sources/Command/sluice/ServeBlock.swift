import ArgumentParser
import HostIO
import Logging
import Storage
import VhostUserBackend
import VirtioBlock
import VirtioServing

/// `sluice serve blk`.
struct ServeBlock: DeviceCommand {
  static let configuration = CommandConfiguration(
    commandName: "blk",
    abstract: "Serve a virtio-blk device: a disk backed by a raw file or a block device.",
    usage: "sluice serve blk --blk-file <path> --socket-path <path> [<options>]",
    discussion: """
      The image is raw; an image that begins like one of another format is refused. The command holds QEMU's image \
      locks while it runs: one writer, or any number of readers. For live migration between two back-ends with the \
      same image, start both with --lock running. If the file grows or shrinks, so does the disk, and the guest is \
      notified.
      """)
  static let capabilities = (type: "block", features: ["read-only", "blk-file"])

  @Option(
    name: [.customLong("blk-file"), .customLong("image")],
    help: ArgumentHelp("The disk image: a raw file or a block device.", valueName: "path"), completion: .file())
  var image: String?

  @Option(
    name: .customLong("image-format"),
    help: ArgumentHelp(
      """
      Refuse an image that begins like one of another format (qcow2, VMDK, VHDX, VDI, LUKS and others) (auto), or \
      serve every image as raw (raw).
      """,
      valueName: "auto|raw"))
  var imageFormat: FormatArgument = .auto

  @Flag(name: .customLong("read-only"), help: "Open the image read-only.")
  var readOnly = false

  @Option(
    name: .customLong("num-queues"), parsing: .unconditional,
    help: ArgumentHelp(
      """
      Maximum number of request queues: 1 to 256. Each queue in use has a thread of its own. QEMU uses one queue for \
      each processor.
      """,
      valueName: "number"))
  var queueCount = 256

  @Option(
    name: .customLong("queue-size"), parsing: .unconditional,
    help: ArgumentHelp(
      "Maximum number of descriptors of a queue: 2 to 32768. A larger queue is refused; QEMU uses 128.",
      valueName: "number"))
  var queueSize = 1024

  @Option(help: ArgumentHelp("Serial number of the disk: up to 20 printable ASCII characters.", valueName: "text"))
  var serial = ""

  @Option(
    name: .customLong("logical-block-size"), parsing: .unconditional,
    help: ArgumentHelp(
      """
      Block size of the guest's disk: a power of two, 512 to 65536. A size below the block device's own costs copies. \
      (default: a block device's own, 512 for a file)
      """,
      valueName: "bytes"))
  var logicalBlockSize: Int?

  @Flag(help: "Bypass the host's page cache (O_DIRECT).")
  var direct = false

  @Option(
    help: ArgumentHelp(
      """
      When completed writes are on stable storage: after a flush (writeback) or at once (writethrough). The guest may \
      change it. If this command is restarted under a running guest, writes are stable at once until the guest's \
      driver chooses a mode or starts anew.
      """,
      valueName: "writeback|writethrough"))
  var cache: CacheArgument = .writeback

  @Option(
    help: ArgumentHelp(
      "I/O engine: uring (io_uring, many requests at once), sync (one request after the other), or auto.",
      valueName: "auto|uring|sync"))
  var engine: DiskEngine = .automatic

  @Option(
    help: ArgumentHelp(
      """
      When to hold the image lock: while the command runs (always); while a guest uses the disk (running), so that the \
      destination back-end of a migration can start before the source ends; never (off), if the file system has no \
      locks and there are no other writers.
      """,
      valueName: "always|running|off"))
  var lock: DiskLock = .always

  @OptionGroup var socket: SocketOptions

  func run() throws {
    guard let image, !image.isEmpty else { throw Failure.usage("no disk image; give --blk-file PATH") }
    guard let size = UInt16(exactly: queueSize) else {
      throw Failure.usage("--queue-size must be 2 to 32768, not \(queueSize)")
    }
    try serve("blk", socket) { log in
      var options = BlockOptions(path: image)
      options.readOnly = readOnly
      options.direct = direct
      options.queueCount = queueCount
      options.queueSize = size
      options.serial = serial
      options.logicalBlockSize = logicalBlockSize
      options.writeback = cache == .writeback
      options.engine = engine
      options.insistsOnRaw = imageFormat == .raw
      options.lock = lock
      options.report = { log.warning("\($0)") }
      options.notice = { log.notice("\($0)") }
      let disk: BlockDevice
      do throws(DiskError) {
        disk = try BlockDevice(options)
      } catch {
        throw Self.failure(error, image, readOnly: readOnly)
      }
      guard disk.byteCount > 0 else {
        throw Failure.host(
          "\(image) is smaller than one block; give it a size, for example with `truncate -s 1G \(image)`")
      }
      let (final, lock) = (options, lock)
      return Served(device: disk) { Self.facts(disk, final, lock) }
    }
  }

  /// The facts of a disk that `explain` reports.
  private static func facts(_ disk: BlockDevice, _ options: BlockOptions, _ lock: DiskLock) -> [ReportFact] {
    let size = disk.byteCount
    let cache: CacheArgument = disk.isWriteback ? .writeback : .writethrough
    let engine: DiskEngine = disk.engine == .uring ? .uring : .synchronous
    let kind = disk.isOnBlockDevice ? "a block device" : "a raw file"
    return [
      ReportFact(
        "image",
        "\(options.path): \(size) bytes in blocks of \(disk.blockSize), \(kind), "
          + (options.readOnly ? "read-only" : "writable"),
        [
          "image": .text(options.path), "image_bytes": .number(size), "block_size": .number(UInt64(disk.blockSize)),
          "read_only": .flag(options.readOnly),
        ]),
      ReportFact(
        "access",
        "cache \(cache.rawValue), \(options.direct ? "around" : "through") the host's page cache, "
          + "engine \(engine.rawValue), lock \(lock.rawValue)",
        [
          "cache": .text(cache.rawValue), "direct": .flag(options.direct), "engine": .text(engine.rawValue),
          "lock": .text(lock.rawValue),
        ]),
    ]
  }

  private static func failure(_ error: DiskError, _ path: String, readOnly: Bool) -> Failure {
    switch error {
    case .format(let name):
      return .host(
        "\(path) begins like a \(name) image; served as a raw disk, the guest would see and overwrite that format's "
          + "metadata. Convert it, for example with `qemu-img convert -O raw`, or, if it is a raw disk, add --image-format raw"
      )
    case .engine(let host):
      return .host("--engine uring: io_uring is not available (\(host.reason)); permit it, or omit --engine")
    case .image(let host) where host.call == "lock":
      if host.errno == .resourceBusy {
        return .host(
          "\(path) is in use by another process that holds its lock; stop that process, "
            + "use --read-only in both, or --lock running in both if a guest migrates between them"
        )
      }
      return .host(
        "the lock of \(path) is not available (\(host.reason)); if nothing else can write the image, "
          + "serve it without a lock: --lock off"
      )
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
      case .noSuchFileOrDirectory:
        return .host(
          "there is no image \(path); create one, for example with `truncate -s 1G \(path)`, or correct --blk-file")
      case .isDirectory: return .host("\(path) is a directory; --blk-file needs a raw image file or a block device")
      case .resourceBusy: return .host("\(path) is in use by the host itself, for example mounted; unmount it first")
      case .blockDeviceRequired:
        return .host("\(path) is neither a file nor a block device; --blk-file needs one of the two")
      case .permissionDenied where readOnly, .notPermitted where readOnly:
        return .host("this user may not read \(path); grant access to it")
      case .permissionDenied, .notPermitted, .readOnlyFileSystem:
        return .host("\(path) cannot be opened for writing (\(host.reason)); grant access to it, or add --read-only")
      case .invalidArgument where host.call == "open O_DIRECT":
        return .host(
          "the size of \(path) is not a multiple of the block size that --direct needs; round it up with `truncate -s %4096 \(path)`, or omit --direct"
        )
      case .notSupported where host.call == "open O_DIRECT":
        return .host("the file system of \(path) does not support O_DIRECT; omit --direct")
      default: return .host("\(path) cannot be opened: \(host.reason)")
      }
    }
  }
}

/// The values of `--cache`.
enum CacheArgument: String, CaseIterable, ExpressibleByArgument { case writeback, writethrough }

/// The values of `--image-format`.
enum FormatArgument: String, CaseIterable, ExpressibleByArgument { case auto, raw }
