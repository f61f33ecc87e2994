import DMA
import Foundation
import HostIO
import Logging
import VhostUserBackend
import VirtioEntropy

/// A real back-end at one end of a socket pair, and a front-end that does what an input says at the other.
///
/// After any input the back-end's `run()` returns soon after the connection has closed, and no descriptor stays open.
enum MessageFuzz {
  /// How long anything may take. A hang is what is looked for, so it is far more than what a loaded machine needs.
  private static let limit = Duration.seconds(8)
  private static let memorySize: UInt64 = 1 << 20
  private static let getProtocolFeatures: UInt8 = 15

  /// Runs one input. Returns what is wrong, or nil.
  static func run(_ input: [UInt8]) -> String? {
    guard let first = input.first else { return nil }
    do {
      guard isWarm else { return "a session that says nothing fails" }
      let before = openDescriptors()
      let rest = input.dropFirst()
      let problem = first & 1 == 0 ? try session([], raw: rest) : try session(MessageScript.steps(rest))
      if let problem { return problem }
      let after = openDescriptors()
      return before == after ? nil : "descriptors before: \(before), after: \(after)"
    } catch {
      return "\(error)"
    }
  }

  /// What a process opens once, the first time, is no leak.
  private static let isWarm = (try? session([])) == .some(nil)

  /// The numbers that are open, but for the one that reads the list: it is the lowest free one, the same each time.
  private static func openDescriptors() -> [String] {
    (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd"))?.sorted() ?? []
  }

  private static func session(_ steps: [MessageScript.Step], raw: ArraySlice<UInt8> = []) throws -> String? {
    let (ours, theirs) = try UnixSocket.pair()
    let memory = try MemoryFile(name: "fuzz", size: memorySize)
    let mapping = try HostMapping(descriptor: memory.descriptor.rawValue, offset: 0, byteCount: Int(memorySize))
    var frontend = try ScriptedFrontend(
      ours, memory: memory, mapping: mapping, event: try EventFD(), channel: try UnixSocket.pair(), limit: limit)
    var log = Logger(label: "fuzz")
    log.logLevel = .critical
    let server = try VhostUserServer(
      EntropyDevice(), on: .connected(theirs), options: BackendOptions(name: "fuzz", maxTranslationNodes: 64), log: log)
    let ended = try EventFD()
    let thread = try WorkerThread(name: "fuzz-be") {
      do { try server.run() } catch { fatalError("the server gave up: \(error)") }
      ended.signal()
    }
    let problem: String?
    if raw.isEmpty {
      problem = try frontend.play(steps, last: getProtocolFeatures)
    } else {
      problem = try frontend.stream(raw, until: { try theirs.pendingBytes() == 0 })
    }
    ours.shutdown()
    guard try ended.wait(timeout: limit) else {
      return "the server still runs \(limit) after the connection was closed"
    }
    thread.join()
    return problem
  }
}
