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
    abstract: "Serve an NVMe controller over vfio-user: a disk backed by a raw file or a block device.",
    usage: "sluice serve nvme --blk-file <path> --vfio-user <path> [<options>]",
    discussion: """
      The controller is a PCI function with one namespace. It reaches the guest's memory only where the client (QEMU \
      10.1 or later: vfio-user-pci) has mapped it for the device: behind an IOMMU, the pages that the guest mapped. \
      There is no migration, and guest memory must be shared.
      """)
  static let capabilities = (type: "nvme", features: ["read-only", "blk-file"])

  @OptionGroup var disk: DiskArguments

  @OptionGroup var socket: VfioUserOptions

  func run() throws {
    try disk.check()
    try serve("nvme", socket.program) { log, unlimited in
      let options = NVMeOptions(disk.options(log))
      let place = socket.socketFact
      let server = try VfioUserServer(
        on: socket.open(), name: "nvme", once: socket.once,
        doorbells: socket.place.doorbells ?? .messages, log: unlimited,
        describe: { (controller: NVMeController, report: inout ServingReport) in
          report.otherKind = "nvme"
          report.facts = [Self.image(controller, options), place]
        },
        explain: { report, form in form == .json ? report.json : report.words }
      ) { master in
        let controller: NVMeController
        do throws(NVMeError) {
          controller = try NVMeController(options, on: master)
        } catch {
          guard case .disk(let error) = error else { throw Failure.host("\(error)") }
          throw disk.failure(error)
        }
        try disk.refuseEmpty(controller.byteCount)
        return controller
      }
      return Service(
        server: server, socket: server.socket, path: socket.place.path, report: { server.statistics })
    }
  }

  /// The disk, for `explain`.
  private static func image(_ controller: NVMeController, _ options: NVMeOptions) -> ReportFact {
    let (size, path, isReadOnly) = (controller.byteCount, options.disk.path, options.disk.readOnly)
    return ReportFact(
      "image", "\(path): \(size) bytes, \(isReadOnly ? "read-only" : "writable")",
      ["image": .text(path), "image_bytes": .number(size), "read_only": .flag(isReadOnly)])
  }
}
