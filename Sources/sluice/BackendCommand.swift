import Foundation
import HostIO
import VhostUserCheck

/// A back-end that this command starts, as often as it is needed. One thread uses it.
final class BackendCommand: CheckSubject {
  private let program: URL
  private let arguments: [String]
  private let socket: String
  private var process: Process?
  /// Of the process's standard error, until it is started again.
  private let errors: URL

  init(_ command: [String], socket: String) throws {
    guard let program = Self.find(command[0]) else { throw Failure.usage("there is no program \(command[0])") }
    self.program = program
    arguments = Array(command.dropFirst())
    self.socket = socket
    errors = FileManager.default.temporaryDirectory.appendingPathComponent("sluice-check-\(getpid()).log")
  }

  private static func find(_ name: String) -> URL? {
    let folders = name.contains("/") ? [""] : (Environment.value(of: "PATH") ?? "/usr/bin:/bin").split(separator: ":").map { "\($0)/" }
    return folders.map { $0 + name }.first { FileManager.default.isExecutableFile(atPath: $0) }.map { URL(fileURLWithPath: $0) }
  }

  var life: BackendLife {
    guard let process else { return .ended(0) }
    if process.isRunning { return .running }
    return process.terminationReason == .uncaughtSignal ? .killed(process.terminationStatus) : .ended(process.terminationStatus)
  }

  func connect(timeout: Duration) throws(HostError) -> UnixSocket {
    if process == nil { _ = renew() }
    return try UnixSocket.connect(to: socket, timeout: timeout)
  }

  /// Starts it, and returns when it listens.
  func renew() -> Bool {
    end()
    try? FileManager.default.removeItem(atPath: socket)
    _ = FileManager.default.createFile(atPath: errors.path, contents: nil)
    guard let log = try? FileHandle(forWritingTo: errors) else { return false }
    let new = Process()
    new.executableURL = program
    new.arguments = arguments
    new.standardInput = FileHandle.nullDevice
    new.standardOutput = log
    new.standardError = log
    do { try new.run() } catch { return false }
    process = new
    // As long as a program may take that reserves memory for itself first.
    for _ in 0..<3000 where new.isRunning {
      if FileManager.default.fileExists(atPath: socket) { return true }
      usleep(10_000)
    }
    return false
  }

  /// Ends it, first politely, then not.
  func end() {
    guard let process, process.isRunning else { return }
    process.terminate()
    for _ in 0..<100 where process.isRunning { usleep(10_000) }
    if process.isRunning { kill(process.processIdentifier, SIGKILL) }
    process.waitUntilExit()
  }

  /// The last line it said, for a message about why it is not there; empty if it said nothing.
  var lastWords: String {
    guard let text = try? String(contentsOf: errors, encoding: .utf8), let line = text.split(separator: "\n").last else { return "" }
    return " (its last words: \(line))"
  }

  deinit {
    end()
    try? FileManager.default.removeItem(at: errors)
  }
}
