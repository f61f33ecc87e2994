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
      device: behind an IOMMU, the pages that the guest mapped. There is no migration, and guest memory must be shared.
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
    let paths = try DiskArguments.check(images)
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

  /// The disks, for `explain`: one fact for each namespace.
  private static func images(_ controller: NVMeController, _ options: NVMeOptions) -> [ReportFact] {
    zip(options.disks, controller.byteCounts).enumerated().map { number, pair in
      let (disk, size) = pair
      return ReportFact(
        options.disks.count == 1 ? "image" : "namespace \(number + 1)",
        "\(disk.path): \(size) bytes, \(disk.readOnly ? "read-only" : "writable")",
        number > 0
          ? [:] : ["image": .text(disk.path), "image_bytes": .number(size), "read_only": .flag(disk.readOnly)])
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
