import Examination
import HostIO
import Logging
import NVMe
import Storage
import VfioUser
import VfioUserCheck
import VirtioTestKit

/// An NVMe controller over vfio-user, served by a thread of this process.
final class ServedNVMe {
  let path: String
  private let folder: TemporaryFolder
  private let server: VfioUserServer
  private let listener: UnixListener
  private let thread: WorkerThread

  /// More than one request reads.
  private static let bytes = (0..<256 << 10).map { UInt8(truncatingIfNeeded: $0 / 512 &* 7 &+ $0 &+ 1) }

  init() throws {
    folder = try TemporaryFolder()
    let image = try folder.file("disk.img", Self.bytes)
    path = folder.path("vfio.sock")
    let listener = try UnixListener(path: path)
    let server = try VfioUserServer(on: .listening(listener), log: .silent) { master in
      try NVMeController(NVMeOptions(DiskOptions(path: image)), on: master)
    }
    self.listener = listener
    self.server = server
    thread = try WorkerThread(name: "vfio-user") { try? server.run() }
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
