import Foundation
import Glibc

/// The server of a machine's disk.
public enum DiskBackend: String, CaseIterable, Sendable {
  /// QEMU itself: the referee, no vhost-user.
  case qemu = "virtio-blk-pci in QEMU"
  /// qemu-storage-daemon over vhost-user; knows no IOMMU.
  case storageDaemon = "qemu-storage-daemon"
  /// Sluice over vhost-user.
  case sluice = "Sluice"

  /// Where qemu-storage-daemon is, if it is installed.
  public static let storageDaemonPath = Program.find("qemu-storage-daemon")

  /// Where the `sluice` command is: `SLUICE_BIN`, or beside the tests' own bundle.
  public static let sluicePath: String? = {
    if let named = ProcessInfo.processInfo.environment["SLUICE_BIN"] { return named }
    let beside = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent().appendingPathComponent(
      "sluice"
    ).path
    return FileManager.default.isExecutableFile(atPath: beside) ? beside : nil
  }()

  /// The back-ends that can put a disk behind an IOMMU, as far as they are here.
  public static var translating: [DiskBackend] { sluicePath == nil ? [.qemu] : [.qemu, .sluice] }

  /// Every back-end that is here.
  public static var present: [DiskBackend] { translating + (storageDaemonPath == nil ? [] : [.storageDaemon]) }

  /// What a test that needs Sluice prints when it is not built.
  public static let sluiceAbsence = "the sluice command is neither in SLUICE_BIN nor beside the tests: build it first"
}

/// A vhost-user back-end in a process of its own, serving one image on one socket.
public final class DiskServer {
  /// Where it listens.
  public let socket: String
  /// The process.
  public let program: Program

  /// Starts it and waits until its socket is there.
  /// - `arguments`: further ones, in the back-end's own words.
  public init(
    _ backend: DiskBackend, image: DiskImage, in scratch: Scratch, queues: Int = 1, readOnly: Bool = false,
    arguments: [String] = [],
    lifetime: Double = 60
  ) throws(QTestError) {
    let socket = scratch.file("s\(UInt16.random(in: 0...UInt16.max))")
    self.socket = socket
    switch backend {
    case .qemu: throw .missing("a server: QEMU serves this disk itself")
    case .storageDaemon:
      guard let path = DiskBackend.storageDaemonPath else { throw .missing("qemu-storage-daemon") }
      program = try Program(
        path,
        [
          "--blockdev", "driver=file,node-name=d,filename=\(image.path)\(readOnly ? ",read-only=on" : "")", "--export",
          "type=vhost-user-blk,id=e,node-name=d,writable=\(readOnly ? "off" : "on"),num-queues=\(queues),addr.type=unix,addr.path=\(socket)",
        ] + arguments, in: scratch, lifetime: lifetime)
    case .sluice:
      guard let path = DiskBackend.sluicePath else { throw .missing(DiskBackend.sluiceAbsence) }
      program = try Program(
        path,
        ["serve", "blk", "--socket-path", socket, "--blk-file", image.path, "--num-queues", "\(queues)"]
          + (readOnly ? ["--read-only"] : [])
          + arguments, in: scratch, lifetime: lifetime)
    }
    try waitForSocket()
  }

  /// Starts a back-end of another kind and waits until its socket is there.
  /// - `arguments`: what its command line is, given the socket.
  public init(
    _ path: String, in scratch: Scratch, lifetime: Double = 60, arguments: (String) -> [String]
  ) throws(QTestError) {
    socket = scratch.file("s\(UInt16.random(in: 0...UInt16.max))")
    program = try Program(path, arguments(socket), in: scratch, lifetime: lifetime)
    try waitForSocket()
  }

  private func waitForSocket() throws(QTestError) {
    let end = ContinuousClock.now + .seconds(20)
    while !FileManager.default.fileExists(atPath: socket) {
      guard program.isRunning else { throw .ended(program: program.name, said: program.said) }
      guard ContinuousClock.now < end else { throw .timedOut(waitingFor: "socket of \(program.name)") }
      usleep(500)
    }
  }
}
