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
    abstract: "Serve a virtio-blk device over vhost-user or vfio-user: a disk backed by a raw file or a block device.",
    usage: "sluice serve blk --blk-file <path> (--socket-path <path>|--vfio-user <path>) [<options>]",
    discussion: """
      The image is raw; an image that begins like one of another format is refused. The command holds QEMU's image \
      locks while it runs: one writer, or any number of readers. For live migration (over vhost-user only) between two \
      back-ends with the same image, start both with --lock running. If the file grows or shrinks, so does the disk, and the guest is \
      notified.
      """)
  static let capabilities = (type: "block", features: ["read-only", "blk-file"])

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

  @Option(
    help: ArgumentHelp(
      "I/O engine: uring (io_uring, many requests at once), sync (one request after the other), or auto.",
      valueName: "auto|uring|sync"))
  var engine: DiskEngine = .automatic

  @OptionGroup var image: ImageArgument

  @OptionGroup var disk: DiskArguments

  @OptionGroup var socket: SocketOptions

  func run() throws {
    let path = try image.path()
    guard let size = UInt16(exactly: queueSize) else {
      throw Failure.usage("--queue-size must be 2 to 32768, not \(queueSize)")
    }
    try serve("blk", socket) { log in
      var options = BlockOptions(disk: disk.options(path, log))
      options.queueCount = queueCount
      options.queueSize = size
      options.engine = engine
      let device = try disk.opened(path) { () throws(DiskError) in try BlockDevice(options) }
      try DiskArguments.refuseEmpty(path, device.byteCount)
      let final = options
      return Served(device: device) { Self.facts(device, final) }
    }
  }

  /// The facts of a disk that `explain` reports.
  private static func facts(_ disk: BlockDevice, _ options: BlockOptions) -> [ReportFact] {
    DiskFacts(
      options: options.disk, byteCount: disk.byteCount, blockSize: disk.blockSize, isWriteback: disk.isWriteback,
      engine: disk.engine == .uring ? .uring : .synchronous, isOnBlockDevice: disk.isOnBlockDevice
    ).facts
  }
}
