import ArgumentParser
import HostIO
import Logging
import Storage

/// The image of a device that shows one.
struct ImageArgument: ParsableArguments {
  @Option(
    name: [.customLong("blk-file"), .customLong("image")],
    help: ArgumentHelp("The disk image: a raw file or a block device.", valueName: "path"), completion: .file())
  // A list, so that a second one is not taken silently in place of the first.
  var images: [String] = []

  /// Refuses what cannot be, before anything is done.
  func path() throws -> String {
    let images = try DiskArguments.check(images)
    guard images.count == 1 else {
      throw Failure.usage(
        "--blk-file is given \(images.count) times; a virtio disk has one image, so start a command for each")
    }
    return images[0]
  }
}

/// The options of every device that shows disk images, but for the images.
struct DiskArguments: ParsableArguments {
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
      """
      When to hold the image lock: while the command runs (always); while a guest uses the disk (running), so that over \
      vhost-user the destination back-end of a migration can start before the source ends; never (off), if the file system has no \
      locks and there are no other writers.
      """,
      valueName: "always|running|off"))
  var lock: DiskLock = .always

  /// Refuses what cannot be, before anything is done.
  static func check(_ images: [String]) throws -> [String] {
    guard !images.isEmpty, !images.contains("") else { throw Failure.usage("no disk image; give --blk-file PATH") }
    return images
  }

  /// The options of the image at `path`; what happens to it goes to the log.
  func options(_ path: String, _ log: Logger) -> DiskOptions {
    var options = DiskOptions(path: path)
    options.readOnly = readOnly
    options.direct = direct
    options.serial = serial
    options.logicalBlockSize = logicalBlockSize
    options.writeback = cache == .writeback
    options.insistsOnRaw = imageFormat == .raw
    options.lock = lock
    options.report = { log.warning("\($0)") }
    options.notice = { log.notice("\($0)") }
    return options
  }

  /// The device that `make` makes of the image; its error becomes a sentence that says what to do.
  func opened<Device>(_ path: String, _ make: () throws(DiskError) -> Device) throws -> Device {
    do throws(DiskError) { return try make() } catch { throw failure(error, path) }
  }

  static func refuseEmpty(_ path: String, _ byteCount: UInt64) throws {
    guard byteCount == 0 else { return }
    throw Failure.host(
      "\(path) is smaller than one block; give it a size, for example with `truncate -s 1G \(path)`")
  }

  /// What to say of the image at `path`, of which no disk could be made.
  func failure(_ error: DiskError, _ path: String) -> Failure {
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
            + "use --read-only in both, or, over vhost-user, --lock running in both if a guest migrates between them"
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
