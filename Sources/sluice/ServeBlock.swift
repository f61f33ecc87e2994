import ArgumentParser
import DMA
import HostIO
import Logging
import VhostUser
import VirtioDevices

/// `sluice serve blk`.
struct ServeBlock: DeviceCommand {
  static let configuration = CommandConfiguration(
    commandName: "blk",
    abstract: "Serve a virtio-blk device: a disk whose contents are a file or a block device.",
    usage: "sluice serve blk --blk-file <path> --socket-path <path> [<options>]",
    discussion: """
      The image is raw; one that begins like an image of another format is refused. As long as the command runs it is \
      locked, with QEMU's locks: one writer, or any number of readers. Where a machine is to migrate live to another \
      back-end with the same image, both are started with --lock running. A file that becomes longer or shorter is a \
      disk that does: the guest is told.
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
      Whether an image that begins like one of another format (qcow2, VMDK, VHDX, VDI, LUKS and others) is refused \
      (auto), or served as it is (raw).
      """,
      valueName: "auto|raw"))
  var imageFormat: FormatArgument = .auto

  @Flag(name: .customLong("read-only"), help: "Let nobody change the image.")
  var readOnly = false

  @Option(
    name: .customLong("num-queues"), parsing: .unconditional,
    help: ArgumentHelp(
      """
      The most request queues a guest may use, each with a thread of its own while it is used: 1 to 256. QEMU uses one \
      for each processor.
      """,
      valueName: "number"))
  var queueCount = 256

  @Option(
    name: .customLong("queue-size"), parsing: .unconditional,
    help: ArgumentHelp(
      "The most descriptors a queue may have: 2 to 32768. A front-end that wants more is refused; QEMU wants 128.",
      valueName: "number"))
  var queueSize = 1024

  @Option(help: ArgumentHelp("The disk's serial number: up to 20 printable ASCII characters.", valueName: "text"))
  var serial = ""

  @Option(
    name: .customLong("logical-block-size"), parsing: .unconditional,
    help: ArgumentHelp(
      """
      The block size the guest sees: a power of two, 512 to 65536. Less than a block device's own costs copies. \
      (default: a block device's own, 512 for a file)
      """,
      valueName: "bytes"))
  var logicalBlockSize: Int?

  @Flag(help: "Go around the host's page cache (O_DIRECT).")
  var direct = false

  @Option(
    help: ArgumentHelp(
      "When a completed write is on stable storage: once it is flushed (writeback) or at once (writethrough). The guest may choose otherwise. When this command was started again under a running guest, writes are stable at once until the guest's driver chooses or starts anew.",
      valueName: "writeback|writethrough"))
  var cache: CacheArgument = .writeback

  @Option(
    help: ArgumentHelp(
      "How the image is read and written: auto, uring (many requests at once), sync (one after the other).",
      valueName: "auto|uring|sync"))
  var engine: EngineArgument = .auto

  @Option(
    help: ArgumentHelp(
      """
      When the image is locked: as long as the command runs (always), while a guest uses the disk (running), so that \
      the back-end a guest migrates to can be started beside the one it leaves, or never (off), where the file system \
      has no locks and something else keeps other writers out.
      """,
      valueName: "always|running|off"))
  var lock: LockArgument = .always

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
      options.engine = engine.engine
      options.insistsOnRaw = imageFormat == .raw
      options.lock = lock.lock
      options.report = { log.warning("\($0)") }
      options.notice = { log.notice("\($0)") }
      let disk = try rethrowing(
        BlockDevice(options), as: { (error: BlockDeviceError) in Self.failure(error, image, readOnly: readOnly) })
      guard disk.byteCount > 0 else {
        throw Failure.host(
          "\(image) has no room for a single block; give it a size, with `truncate -s 1G \(image)` say")
      }
      let (final, lock) = (options, lock)
      return Served(device: disk) { Self.facts(disk, final, lock) }
    }
  }

  /// What `explain` says of a disk.
  private static func facts(_ disk: BlockDevice, _ options: BlockOptions, _ lock: LockArgument) -> [BackendFact] {
    let size = disk.byteCount
    let cache: CacheArgument = disk.isWriteback ? .writeback : .writethrough
    let engine: EngineArgument = disk.engine == .uring ? .uring : .sync
    let kind = disk.isOnBlockDevice ? "a block device" : "a raw file"
    return [
      BackendFact(
        "image",
        "\(options.path): \(size) bytes in blocks of \(disk.blockSize), \(kind), "
          + (options.readOnly ? "read-only" : "writable"),
        [
          "image": .text(options.path), "image_bytes": .number(size), "block_size": .number(UInt64(disk.blockSize)),
          "read_only": .flag(options.readOnly),
        ]),
      BackendFact(
        "access",
        "cache \(cache.rawValue), \(options.direct ? "around" : "through") the host's page cache, "
          + "engine \(engine.rawValue), lock \(lock.rawValue)",
        [
          "cache": .text(cache.rawValue), "direct": .flag(options.direct), "engine": .text(engine.rawValue),
          "lock": .text(lock.rawValue),
        ]),
    ]
  }

  private static func failure(_ error: BlockDeviceError, _ path: String, readOnly: Bool) -> Failure {
    switch error {
    case .format(let name):
      return .host(
        "\(path) begins like a \(name) image; as a raw disk the guest would see that format's own bytes, and destroy it by "
          + "writing. Convert it, with `qemu-img convert -O raw` say, or if it is a raw disk insist with --image-format raw"
      )
    case .engine(let host):
      return .host("--engine uring: this host gives no io_uring (\(host.reason)); permit it, or leave --engine out")
    case .image(let host) where host.call == "lock":
      if host.errno == .resourceBusy {
        return .host(
          "\(path) is in use by another process that holds its lock; stop that one, "
            + "serve it with --read-only on both sides, or with --lock running where a guest migrates between the two"
        )
      }
      return .host(
        "the lock of \(path) cannot be had (\(host.reason)); if nothing else can write the image, "
          + "serve it without one: --lock off"
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
        return .host("there is no image \(path); create one, with `truncate -s 1G \(path)` say, or correct --blk-file")
      case .isDirectory: return .host("\(path) is a directory; --blk-file needs a raw image file or a block device")
      case .resourceBusy: return .host("\(path) is in use by the host itself, mounted say; see to it that it is not")
      case .blockDeviceRequired:
        return .host("\(path) is neither a file nor a block device; --blk-file needs one of them")
      case .permissionDenied where readOnly, .notPermitted where readOnly:
        return .host("\(path) may not be read by this user; give access to it")
      case .permissionDenied, .notPermitted, .readOnlyFileSystem:
        return .host("\(path) may not be opened for writing (\(host.reason)); give access to it, or add --read-only")
      case .invalidArgument where host.call == "open O_DIRECT":
        return .host(
          "the size of \(path) is no multiple of the block that --direct needs; round it up with `truncate -s %4096 \(path)`, or leave --direct out"
        )
      case .notSupported where host.call == "open O_DIRECT":
        return .host("the file system of \(path) has no O_DIRECT; leave --direct out")
      default: return .host("\(path) cannot be opened: \(host.reason)")
      }
    }
  }
}

/// The two words of `--cache`.
enum CacheArgument: String, CaseIterable, ExpressibleByArgument { case writeback, writethrough }

/// The two words of `--image-format`.
enum FormatArgument: String, CaseIterable, ExpressibleByArgument { case auto, raw }

/// The three words of `--lock`.
enum LockArgument: String, CaseIterable, ExpressibleByArgument {
  case always, running, off

  var lock: BlockLock {
    switch self {
    case .always: .always
    case .running: .running
    case .off: .never
    }
  }
}

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
