import Examination
import Foundation
import HostIO
import Logging
import Storage
import VhostUserBackend
import VhostUserCheck
import Virtio
import VirtioBlock
import VirtioTestKit

/// A device on a socket's file, served by a thread of this process.
final class ServedDevice {
  let path: String
  private let server: VhostUserServer
  private let thread: WorkerThread
  private let listener: UnixListener

  init(_ device: any VirtioDevice, options: BackendOptions = BackendOptions(name: "test")) throws {
    path =
      FileManager.default.temporaryDirectory.appendingPathComponent("sluice-\(UUID().uuidString.prefix(8)).sock").path
    let listener = try UnixListener(path: path)
    let server = try VhostUserServer(device, on: .listening(listener), options: options, log: .silent)
    self.listener = listener
    self.server = server
    thread = try WorkerThread(name: "back-end") { try? server.run() }
  }

  /// Ends it, as a back-end's process ends.
  func stop() {
    server.stop()
    thread.join()
    listener.removeFile()
  }

  deinit { stop() }
}

/// A disk of a megabyte in a file that goes with the object.
final class ServedDisk {
  let served: ServedDevice
  private let folder: TemporaryFolder

  init(options: BackendOptions = BackendOptions(name: "test")) throws {
    folder = try TemporaryFolder()
    let bytes = (0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 / 512 &* 7 &+ $0 &+ 1) }
    served = try ServedDevice(try BlockDevice(BlockOptions(path: folder.file("disk.img", bytes))), options: options)
  }
}

/// The results of checks, by name.
func results(
  _ subject: any CheckSubject, _ device: DeviceProbe, only: [String] = [], patience: Duration = .seconds(20)
) throws -> ([String: CheckResult], CheckSummary) {
  var found: [String: CheckResult] = [:]
  let run = try CheckRun(subject, device, patience: patience, only: only)
  let summary = try run.run { found[$0.name] = $0 }
  return (found, summary)
}
