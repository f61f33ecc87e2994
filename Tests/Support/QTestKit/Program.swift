import Foundation
import Glibc
import Synchronization

/// A process the kit started: its error output is kept, and it is killed with its owner or at its deadline, if that
/// comes first.
public final class Program {
  /// What it is, for messages.
  public let name: String
  /// Its process id.
  public var id: Int32 { process.processIdentifier }
  let input = Pipe()
  let output = Pipe()
  private let process = Process()
  private let log: String
  private let ended = DispatchSemaphore(value: 0)
  private let life = Life()

  /// Whether the process may still be signalled: once it ended, its id may be another's.
  private final class Life: Sendable {
    let isOver = Mutex(false)
  }

  /// Starts `path` with these arguments.
  /// - `lifetime`: seconds after which it is killed, so that a hang of the program never becomes a hang of the tests.
  public init(_ path: String, _ arguments: [String], in scratch: Scratch, lifetime: Double) throws(QTestError) {
    signal(SIGPIPE, SIG_IGN)  // a peer that died is an error to report, not a signal to die of
    name = String(path.split(separator: "/").last ?? "program")
    log = scratch.file("\(name)-\(UInt32.random(in: 0...UInt32.max)).err")
    guard FileManager.default.createFile(atPath: log, contents: nil), let errors = FileHandle(forWritingAtPath: log)
    else {
      throw .file("cannot create \(log)")
    }
    process.executableURL = URL(fileURLWithPath: path)
    process.arguments = arguments
    process.standardInput = input
    process.standardOutput = output
    process.standardError = errors
    let ended = ended
    let life = life
    process.terminationHandler = { _ in
      life.isOver.withLock { $0 = true }
      ended.signal()
    }
    do {
      try process.run()
    } catch {
      throw .cannotStart(program: path, why: "\(error)")
    }
    try? errors.close()
    let id = process.processIdentifier
    DispatchQueue.global().asyncAfter(deadline: .now() + lifetime) {
      life.isOver.withLock { if !$0 { _ = kill(id, SIGKILL) } }
    }
  }

  deinit { stop(9) }

  /// Whether it still runs.
  public var isRunning: Bool { process.isRunning }

  /// The exit status, once it ended.
  public var exitStatus: Int32? { process.isRunning ? nil : process.terminationStatus }

  /// What it wrote to its error output so far.
  public var said: String { (try? String(contentsOfFile: log, encoding: .utf8)) ?? "" }

  /// Sends a signal and waits for the end. After `patience` seconds it is killed.
  /// - Returns: whether it ended by itself in that time.
  @discardableResult
  public func stop(_ signal: Int32 = 15, patience: Double = 5) -> Bool {
    guard process.isRunning else { return true }
    kill(process.processIdentifier, signal)
    if ended.wait(timeout: .now() + patience) == .success { return true }
    kill(process.processIdentifier, SIGKILL)
    ended.wait()
    return false
  }

  /// Waits for its end. Returns whether it came in that many seconds.
  public func ended(within seconds: Double) -> Bool {
    guard process.isRunning else { return true }
    guard ended.wait(timeout: .now() + seconds) == .success else { return false }
    ended.signal()
    return true
  }

  /// Where a program is: a path, or a name looked up in `PATH`.
  public static func find(_ name: String) -> String? {
    let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
    return path.split(separator: ":").map { "\($0)/\(name)" }.first { FileManager.default.isExecutableFile(atPath: $0) }
  }
}
