import DMA
import Foundation
import HostIO
import Logging
import NVMe
import Storage
import VfioUser

/// A real server of an NVMe controller at one end of a socket pair, and a client that does what an input says at the
/// other.
///
/// After any input the server's `run()` returns soon after the connection has closed, and no descriptor stays open.
enum ServerFuzz {
  /// How long anything may take. A hang is what is looked for, so it is far more than what a loaded machine needs.
  private static let limit = Duration.seconds(8)
  private static let memorySize: UInt64 = 1 << 20
  /// The disk, read-only: what one input wrote must not be there for the next.
  private static let image: String = {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("sluice-fuzz-\(getpid()).img").path
    _ = FileManager.default.createFile(atPath: path, contents: Data(count: 64 << 10))
    return path
  }()

  /// Runs one input. Returns what is wrong, or nil.
  static func run(_ input: [UInt8]) -> String? {
    guard let first = input.first else { return nil }
    do {
      guard isWarm else { return "a session that says nothing fails" }
      let before = openDescriptors()
      let rest = input.dropFirst()
      let start = ClientScript.Start(rawValue: first)
      let problem =
        start.contains(.steps)
        ? try session(ClientScript.opening(start) + ClientScript.steps(rest), start) : try session([], start, raw: rest)
      if let problem { return problem }
      return isSettled(before) ? nil : "descriptors before: \(before), after: \(openDescriptors())"
    } catch {
      return "\(error)"
    }
  }

  /// What a process opens once, the first time, is no leak.
  private static let isWarm = (try? session(ClientScript.opening([.agreed, .mapped, .enabled]), [])) == .some(nil)

  /// Whether nothing is open that was not before, or soon nothing: the thread that watches an image's size ends by
  /// itself, and is the last to hold what it tells.
  private static func isSettled(_ before: [String]) -> Bool {
    for _ in 0..<1000 {
      if Set(openDescriptors()).isSubset(of: before) { return true }
      Thread.sleep(forTimeInterval: 0.005)
    }
    return false
  }

  /// The numbers that are open, but for the one that reads the list: it is the lowest free one, the same each time.
  private static func openDescriptors() -> [String] {
    (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd"))?.sorted() ?? []
  }

  private static func session(
    _ steps: [ClientScript.Step], _ start: ClientScript.Start, raw: ArraySlice<UInt8> = []
  ) throws -> String? {
    let (ours, theirs) = try UnixSocket.pair()
    let memory = try MemoryFile(name: "fuzz", size: memorySize)
    let mapping = try HostMapping(descriptor: memory.descriptor.rawValue, offset: 0, byteCount: Int(memorySize))
    var client = ScriptedClient(
      ours, memory: memory, mapping: mapping, event: try EventFD(), grants: start.contains(.grants), limit: limit)
    var log = Logger(label: "fuzz")
    log.logLevel = .critical
    var disk = DiskOptions(path: image)
    disk.readOnly = true
    let options = NVMeOptions(disk)
    let server = try VfioUserServer(on: .connected(theirs), log: log) { master in
      try NVMeController(options, on: master)
    }
    let ended = try EventFD()
    let thread = try WorkerThread(name: "fuzz-server") {
      do { try server.run() } catch { fatalError("the server gave up: \(error)") }
      ended.signal()
    }
    let problem =
      raw.isEmpty ? try client.play(steps) : try client.stream(raw, until: { try theirs.pendingBytes() == 0 })
    ours.shutdown()
    guard try ended.wait(timeout: limit) else {
      return "the server still runs \(limit) after the connection was closed"
    }
    thread.join()
    return problem
  }
}
