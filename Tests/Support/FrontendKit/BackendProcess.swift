public import Foundation

/// A back-end in a process of its own, ended when the object goes.
public final class BackendProcess {
  private let process = Process()
  private let log: URL
  /// Where it listens.
  public let socket: String

  /// Starts `program`; nil if there is no such program.
  public init?(_ program: String, _ arguments: [String], socket: String, log: URL) throws {
    guard FileManager.default.isExecutableFile(atPath: program) else { return nil }
    self.socket = socket
    self.log = log
    _ = FileManager.default.createFile(atPath: log.path, contents: nil)
    let output = try FileHandle(forWritingTo: log)
    process.executableURL = URL(fileURLWithPath: program)
    process.arguments = arguments
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = output
    process.standardError = output
    try process.run()
  }

  deinit { kill() }

  public var identifier: Int32 { process.processIdentifier }
  public var isRunning: Bool { process.isRunning }

  /// What it printed so far.
  public var output: String { (try? String(contentsOf: log, encoding: .utf8)) ?? "" }

  /// Ends it: first politely, then, after some seconds, not.
  public func stop(patience seconds: Int = 1) {
    guard process.isRunning else { return }
    process.terminate()
    for _ in 0..<100 * seconds where process.isRunning { usleep(10_000) }
    kill()
  }

  /// Ends it as a crash would.
  public func kill() {
    guard process.isRunning else { return }
    Foundation.kill(process.processIdentifier, SIGKILL)
    process.waitUntilExit()
  }

  /// Waits until its socket's file is there. False if it never came, or the process ended.
  public func waitForSocket(seconds: Double = 5) -> Bool {
    let end = Date(timeIntervalSinceNow: seconds)
    while Date() < end {
      if FileManager.default.fileExists(atPath: socket) { return true }
      if !process.isRunning { return false }
      usleep(2_000)
    }
    return false
  }

  /// Processor time of all its threads so far, in nanoseconds, as the scheduler counted it.
  public var processorTime: UInt64 { Self.processorTime(of: process.processIdentifier) }

  /// Processor time of all threads of a process so far, in nanoseconds, as the scheduler counted it.
  public static func processorTime(of process: Int32) -> UInt64 {
    let tasks = "/proc/\(process)/task"
    var sum: UInt64 = 0
    for task in (try? FileManager.default.contentsOfDirectory(atPath: tasks)) ?? [] {
      // "run wait slices": the first is the time on a processor.
      guard let text = try? String(contentsOfFile: "\(tasks)/\(task)/schedstat", encoding: .utf8) else { continue }
      sum += text.split(separator: " ").first.flatMap { UInt64($0) } ?? 0
    }
    return sum
  }

  /// As ``processorTime``, threads that have ended included, to the hundredth of a second.
  public var totalProcessorTime: UInt64 {
    guard let text = try? String(contentsOfFile: "/proc/\(process.processIdentifier)/stat", encoding: .utf8),
      let end = text.lastIndex(of: ")")
    else { return 0 }
    // After the name: state is field 3, user and system time are 14 and 15, in ticks of 10 ms.
    let fields = text[text.index(after: end)...].split(separator: " ")
    guard fields.count > 12, let user = UInt64(fields[11]), let system = UInt64(fields[12]) else { return 0 }
    return (user + system) * 10_000_000
  }

  /// qemu-storage-daemon with a writable raw image as vhost-user-blk. nil if it is not installed.
  public static func storageDaemon(
    image: String, directory: URL, queues: Int = 1, program: String = "/usr/bin/qemu-storage-daemon",
    name: String = "qsd"
  ) throws -> BackendProcess? {
    let socket = directory.appendingPathComponent("\(name).sock").path
    try? FileManager.default.removeItem(atPath: socket)
    return try BackendProcess(
      program,
      [
        "--blockdev", "driver=file,node-name=f,filename=\(image),cache.direct=off,aio=threads",
        "--blockdev", "driver=raw,node-name=d,file=f",
        "--export",
        "type=vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path=\(socket),writable=on,num-queues=\(queues)",
      ], socket: socket, log: directory.appendingPathComponent("\(name).log"))
  }

  /// Sluice's own command with the image.
  public static func sluice(
    image: String, directory: URL, queues: Int = 1, program: String, extra: [String] = [], name: String = "sluice"
  ) throws -> BackendProcess? {
    let socket = directory.appendingPathComponent("\(name).sock").path
    try? FileManager.default.removeItem(atPath: socket)
    return try BackendProcess(
      program, ["serve", "blk", "--socket-path", socket, "--blk-file", image, "--num-queues", "\(queues)"] + extra,
      socket: socket, log: directory.appendingPathComponent("\(name).log"))
  }
}
