import ArgumentParser
import HostIO
import Logging
import NVMe
import Storage
import VfioUser
import VirtioServing

/// `sluice serve nvme`.
struct ServeNVMe: DeviceCommand {
  static let configuration = CommandConfiguration(
    commandName: "nvme",
    abstract: "Serve an NVMe controller over vfio-user: disks backed by raw files or block devices.",
    usage: "sluice serve nvme --blk-file <path> ... --vfio-user <path> [<options>]",
    discussion: """
      The controller is a PCI function with a namespace for each --blk-file, numbered from 1 in the order given. It \
      reaches the guest's memory only where the client (QEMU 10.1 or later: vfio-user-pci) has mapped it for the \
      device: behind an IOMMU, the pages that the guest mapped. Guest memory with a descriptor must be shared (QEMU: \
      share=on); memory without one (memory-backend-ram) is reached by messages, which is slower. There is no live \
      migration.
      """)
  static let capabilities = (type: "nvme", features: ["read-only", "blk-file"])

  @Option(
    name: [.customLong("blk-file"), .customLong("image")],
    help: ArgumentHelp(
      """
      The disk image of a namespace: a raw file or a block device. Repeat it for more namespaces, at most 64; the other \
      options are those of all of them.
      """,
      valueName: "path"), completion: .file())
  var images: [String] = []

  @Option(
    name: .customLong("num-queues"), parsing: .unconditional,
    help: ArgumentHelp(
      "Maximum number of pairs of I/O queues: 1 to 64. Linux uses one pair for each processor.", valueName: "number"))
  var queueCount = 8

  @Option(
    name: .customLong("queue-size"), parsing: .unconditional,
    help: ArgumentHelp("Maximum number of entries of a queue: 2 to 65536.", valueName: "number"))
  var queueSize = 1024

  @Option(
    help: ArgumentHelp(
      "I/O engine: uring (io_uring, many commands at once), sync (one command after the other), or auto.",
      valueName: "auto|uring|sync"))
  var engine: DiskEngine = .automatic

  @OptionGroup var disk: DiskArguments

  @OptionGroup var socket: VfioUserOptions

  func run() throws {
    try socket.check()
    let paths = try DiskArguments.check(images)
    // A disk that is only read, or not locked, may be there twice.
    if let twice = paths.first(where: { path in paths.count { $0 == path } > 1 }), !disk.readOnly, disk.lock != .never {
      throw Failure.usage(
        "--blk-file \(twice) is given twice; each namespace that can be written needs an image of its own")
    }
    try serve("nvme", socket.program) { log, unlimited in
      let disks = paths.map { path in
        var disk = disk.options(path, log)
        disk.engine = engine
        return disk
      }
      var options = NVMeOptions(disks: disks)
      options.ioQueues = queueCount
      options.queueSize = queueSize
      let final = options
      let place = socket.socketFact
      let server = try VfioUserServer(
        on: socket.open(), name: "nvme", once: socket.once,
        doorbells: socket.place.doorbells ?? .messages, log: unlimited,
        describe: { (controller: NVMeController, report: inout ServingReport) in
          report.otherKind = "nvme"
          report.facts = Self.images(controller, final) + [place]
        },
        explain: { report, form in form == .json ? report.json : report.words }
      ) { master in
        let controller: NVMeController
        do throws(NVMeError) {
          controller = try NVMeController(final, on: master)
        } catch {
          throw failure(error, paths)
        }
        for (path, size) in zip(paths, controller.byteCounts) { try DiskArguments.refuseEmpty(path, size) }
        return controller
      }
      return Service(
        server: server, socket: server.socket, path: socket.place.path, report: { server.statistics })
    }
  }

  /// The disks, for `explain`: what is a virtio disk's is namespace 1's, and a list has all of them.
  private static func images(_ controller: NVMeController, _ options: NVMeOptions) -> [ReportFact] {
    let disks = zip(options.disks, controller.namespaces).map { options, now in
      DiskFacts(
        options: options, byteCount: now.byteCount, blockSize: now.blockSize, isWriteback: now.isWriteback,
        engine: now.engine == .uring ? .uring : .synchronous, isOnBlockDevice: now.isOnBlockDevice)
    }
    guard let first = disks.first else { return [] }
    let list = disks.enumerated().map { number, disk in
      disk.imageValues.merging(disk.accessValues) { image, _ in image }
        .merging(["namespace": .number(UInt64(number + 1))]) { old, _ in old }
    }
    let both = first.imageValues.merging(first.accessValues) { image, _ in image }
    let values = both.merging(["namespaces": .list(list)]) { old, _ in old }
    guard disks.count > 1 else {
      return [ReportFact("image", first.image, values), ReportFact("access", first.access, [:])]
    }
    return disks.enumerated().map { number, disk in
      ReportFact("namespace \(number + 1)", "\(disk.image); \(disk.access)", number == 0 ? values : [:])
    }
  }

  /// What to say of a controller that could not be made.
  private func failure(_ error: NVMeError, _ paths: [String]) -> Failure {
    switch error {
    case .disk(let namespace, let error): return disk.failure(error, paths[namespace - 1])
    case .option(let name, let rule):
      let option =
        switch name {
        case "ioQueues": "--num-queues"
        case "queueSize": "--queue-size"
        case "disks": "the number of --blk-file"
        default: name
        }
      return .usage("\(option) \(rule)")
    case .host(let text): return .host(text)
    }
  }
}
