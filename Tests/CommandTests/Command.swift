import DMA
import Foundation
import FrontendKit
import Testing
import VhostUserFrontend
import Virtio
import VirtioTestKit

/// The built `sluice`, run as a user would.
struct Command {
  struct Result {
    var status: Int32
    var output: String
    var errors: String

    /// The object that its output is, in JSON.
    var object: [String: Any] {
      get throws { try #require(JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any]) }
    }
  }

  /// Beside the test bundle, where the build puts both.
  static let program: URL = {
    let runner = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
    let candidates = [
      runner.deletingLastPathComponent().appendingPathComponent("sluice"),
      URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("../../.build/debug/sluice")
        .standardized,
    ]
    return candidates.first { FileManager.default.isExecutableFile(atPath: $0.path) } ?? candidates[0]
  }()

  /// Runs to the end, for at most 30 seconds.
  static func run(_ words: String...) throws -> Result { try run(words) }

  static func run(_ words: [String]) throws -> Result {
    let running = try Running(words)
    return try running.end(within: 30)
  }

  /// The objects that lines are, in JSON.
  static func objects(_ text: String) throws -> [[String: Any]] {
    try text.split(separator: "\n").map {
      try #require(JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any])
    }
  }

  /// A process under way.
  final class Running {
    let process = Process()
    private let ended = DispatchSemaphore(value: 0)
    private let output: URL
    private let errors: URL

    init(_ words: [String], through launcher: [String] = []) throws {
      let folder = FileManager.default.temporaryDirectory
      output = folder.appendingPathComponent("sluice-out-\(UUID().uuidString)")
      errors = folder.appendingPathComponent("sluice-err-\(UUID().uuidString)")
      for file in [output, errors] { FileManager.default.createFile(atPath: file.path, contents: nil) }
      let all = launcher + [Command.program.path] + words
      process.executableURL = URL(fileURLWithPath: all[0])
      process.arguments = Array(all.dropFirst())
      process.standardInput = FileHandle.nullDevice
      process.standardOutput = try FileHandle(forWritingTo: output)
      process.standardError = try FileHandle(forWritingTo: errors)
      process.terminationHandler = { [ended] _ in ended.signal() }
      try process.run()
    }

    /// Its output so far.
    var said: String { (try? String(contentsOf: errors, encoding: .utf8)) ?? "" }

    /// Waits until it has printed something, for twenty seconds at most. A file gives no event when it grows.
    func waitUntilSaid(_ words: String) throws { try waitUntil("it said: \(words)") { said.contains(words) } }

    /// Waits until the back-end has taken so many requests.
    func waitUntilTaken(_ count: Int, _ folder: TemporaryFolder) throws {
      try waitUntil("it took \(count) requests") {
        try Command.run("explain", "--json", folder.path("s.sock")).object["requests"] as? Int == count
      }
    }

    private func waitUntil(_ what: String, _ condition: () throws -> Bool) throws {
      if try eventually(every: .milliseconds(5), condition) { return }
      throw Trouble(what: "it did not come to that \(what); it said: \(said)")
    }

    /// Waits for the end; after the time is over it is killed and the status is -1.
    func end(within seconds: Double) throws -> Result {
      let isLate = ended.wait(timeout: .now() + seconds) == .timedOut
      if isLate { kill(process.processIdentifier, SIGKILL) }
      process.waitUntilExit()
      return Result(
        status: isLate ? -1 : process.terminationStatus,
        output: try String(contentsOf: output, encoding: .utf8), errors: try String(contentsOf: errors, encoding: .utf8)
      )
    }

    /// Tells it to stop, which it does.
    func expectCleanEnd(sourceLocation: SourceLocation = #_sourceLocation) throws {
      terminate()
      #expect(try end(within: 10).status == 0, sourceLocation: sourceLocation)
    }

    func terminate() { kill(process.processIdentifier, SIGTERM) }

    deinit {
      if process.isRunning {
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
      }
      for file in [output, errors] { try? FileManager.default.removeItem(at: file) }
    }
  }
}

extension TemporaryFolder {
  /// Serves a disk and returns when it answers.
  func serve(_ image: String, socket: String = "s.sock", _ more: String...) throws -> Command.Running {
    let running = try Command.Running(["serve", "blk", "--socket-path", path(socket), "--blk-file", image] + more)
    try waitUntilAnswered(socket, running)
    return running
  }

  /// Serves a new disk at the usual place.
  func serve(with more: String..., through launcher: [String] = []) throws -> Command.Running {
    let words = ["serve", "blk", "--socket-path", path("s.sock"), "--blk-file", try image()] + more
    let running = try Command.Running(words, through: launcher)
    try waitUntilAnswered("s.sock", running)
    return running
  }

  /// A front-end that has agreed on these features, and shares as much memory.
  func connect(
    _ features: Features, sharing byteCount: UInt64 = 0, timeout: Duration = .seconds(5)
  ) throws -> Frontend {
    let memory = byteCount > 0 ? try FrontendMemory(byteCount: byteCount) : FrontendMemory()
    let frontend = try Frontend.connect(to: path("s.sock"), memory: memory, timeout: timeout)
    try frontend.negotiate(features)
    if byteCount > 0 { try frontend.share() }
    return frontend
  }

  func waitUntilAnswered(_ socket: String, _ running: Command.Running) throws {
    var isThere = false
    _ = try eventually(every: .milliseconds(20)) {
      isThere = try Command.run("explain", path(socket)).status == 0
      return isThere || !running.process.isRunning
    }
    if !isThere { throw Trouble(what: "the back-end does not answer: \(running.said)") }
  }
}

struct Trouble: Error { var what: String }

extension BlockClientPlace {
  static var usual: Self { Self(base: GuestAddress(0x10000), queueSize: 16, slots: 4, slotBytes: 4096) }
}
