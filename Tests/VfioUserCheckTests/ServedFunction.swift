import Examination
import HostIO
import Logging
import NVMe
import PCI
import Storage
import VfioUser
import VfioUserCheck
import Virtio
import VirtioBlock
import VirtioEntropy
import VirtioPCI
import VirtioTestKit

/// A PCI function over vfio-user, served by a thread of this process.
final class ServedFunction {
  let path: String
  private let folder: TemporaryFolder
  private let server: VfioUserServer
  private let listener: UnixListener
  private let thread: WorkerThread
  /// More than one request reads.
  private static let bytes = (0..<256 << 10).map { UInt8(truncatingIfNeeded: $0 / 512 &* 7 &+ $0 &+ 1) }

  /// - Parameter make: makes the function, of a disk image.
  init<F: PCIFunction>(doorbells: DoorbellPolicy = .messages, _ make: (String, BusMaster) throws -> F) throws {
    folder = try TemporaryFolder()
    let image = try folder.file("disk.img", Self.bytes)
    path = folder.path("vfio.sock")
    let listener = try UnixListener(path: path)
    let server = try VfioUserServer(on: .listening(listener), doorbells: doorbells, log: .silent) {
      try make(image, $0)
    }
    self.listener = listener
    self.server = server
    thread = try WorkerThread(name: "vfio-user") { try? server.run() }
  }

  static func nvme(doorbells: DoorbellPolicy = .messages) throws -> ServedFunction {
    try ServedFunction(doorbells: doorbells) { image, master in
      try NVMeController(NVMeOptions(DiskOptions(path: image)), on: master)
    }
  }

  /// A disk (`blk`) or a source of random numbers.
  static func virtio(_ kind: String) throws -> ServedFunction {
    try ServedFunction { image, master in
      let device: any VirtioDevice = kind == "blk" ? try BlockDevice(BlockOptions(path: image)) : EntropyDevice()
      // As every PCI function of a machine's, and not as QEMU's own virtio devices: the IOMMU is in front of it.
      var options = VirtioPCIOptions()
      options.isHardware = true
      return try VirtioPCIFunction(device, options, on: master, log: .silent)
    }
  }

  deinit {
    server.stop()
    thread.join()
    listener.removeFile()
  }
}

/// The results of checks, by name.
func results(
  _ subject: any CheckSubject, only: [String] = [], patience: Duration = .seconds(20)
) throws -> ([String: CheckResult], CheckSummary) {
  var found: [String: CheckResult] = [:]
  let run = try VfioCheckRun(subject, patience: patience, only: only)
  let summary = try run.run { found[$0.name] = $0 }
  return (found, summary)
}
