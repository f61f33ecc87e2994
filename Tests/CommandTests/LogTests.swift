import DMA
import Foundation
import FrontendKit
import Testing
import VhostUser
import VhostUserFrontend
import Virtio
import VirtioTestKit

@Suite("The log of a command", .serialized, .timeLimit(.minutes(10))) struct LogTests {
  private let folder: TemporaryFolder

  init() throws { folder = try TemporaryFolder() }

  /// Asks for configuration that is not there, which is refused, again and again.
  private func quarrel(times: Int = 2000) throws {
    let frontend = try folder.connect([.version1])
    for _ in 0..<times { _ = try? frontend.readConfiguration(at: 0, count: 257) }
    frontend.close()
  }

  @Test(
    "With a standard error that is closed, full or never read front-ends are served, and SIGTERM ends it",
    arguments: StandardError.allCases)
  func nobodyListens(_ kind: StandardError) throws {
    let running = try folder.serve(with: "--log-level", "debug", through: kind.launcher(folder))
    for _ in 0..<3 { try quarrel() }
    #expect(try Command.run("explain", folder.path("s.sock")).status == 0)
    try running.expectCleanEnd()
    #expect(!FileManager.default.fileExists(atPath: folder.path("s.sock")))
    // A log that went where standard error had been would have gone into the image.
    #expect(try Data(contentsOf: URL(fileURLWithPath: folder.path("disk.img"))) == Data(count: 1 << 20))
  }

  @Test("A mistake in what was typed ends the command with any standard error", arguments: StandardError.allCases)
  func mistake(_ kind: StandardError) throws {
    #expect(
      try Command.Running(["serve", "blk", "--socket-path", "s"], through: kind.launcher(folder)).end(within: 10).status
        == 2)
  }

  @Test("Thousands of refused requests are a few lines and a count")
  func quiet() throws {
    let running = try folder.serve()
    try quarrel()
    running.terminate()
    let lines = try running.end(within: 10).errors.split(separator: "\n")
    let refused = lines.filter { $0.contains("request refused") }
    #expect(refused.count == 17)
    #expect(refused.last?.contains("1984 lines left out, the last of them: request refused") == true, "\(lines)")
  }

  @Test("With --log-format json every line is an object with time, level, device and message; SIGUSR1 adds the state")
  func json() throws {
    let running = try folder.serve(with: "--log-format", "json")
    try quarrel(times: 1)
    kill(running.process.processIdentifier, SIGUSR1)
    try running.waitUntilSaid("\"state\"")
    running.terminate()
    let objects = try Command.objects(running.end(within: 10).errors)
    for object in objects {
      let time = try #require(object["time"] as? String)
      #expect(time.wholeMatch(of: /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z/) != nil)
      #expect(object["device"] as? String == "blk" && object["level"] is String && object["message"] is String)
    }
    #expect(
      objects.contains {
        $0["level"] as? String == "warning" && ($0["message"] as? String)?.hasPrefix("request refused") == true
      })
    let state = try #require(objects.compactMap { $0["state"] as? [String: Any] }.first)
    #expect(state["image"] as? String == folder.path("disk.img") && state["sessions"] as? Int == 1)
  }

  @Test(
    "A line begins with its priority when standard error is the journal's, and only then", arguments: [true, false])
  func journal(_ isJournal: Bool) throws {
    let stream = isJournal ? "$(stat -Lc %d:%i /proc/self/fd/2)" : "1:1"
    let running = try folder.serve(through: ["/bin/sh", "-c", "exec env JOURNAL_STREAM=\(stream) \"$@\"", "sh"])
    try quarrel(times: 1)
    running.terminate()
    let lines = try running.end(within: 10).errors.split(separator: "\n")
    #expect(lines.contains { $0.hasPrefix(isJournal ? "<6>sluice blk: listening" : "sluice blk: listening") })
    #expect(
      lines.contains {
        $0.hasPrefix(isJournal ? "<4>sluice blk: warning: request refused" : "sluice blk: warning: request refused")
      })
  }

  @Test("A front-end that went is said to have gone, and why")
  func gone() throws {
    let running = try folder.serve()
    try Frontend.connect(to: folder.path("s.sock")).close()
    let second = try Frontend.connect(to: folder.path("s.sock"))
    _ = try second.ask(.getFeatures)
    second.close()
    try running.waitUntilSaid("before it had chosen features")
    let third = try folder.connect([.version1], sharing: 8 << 20)
    var disk = try BlockClient(third, queue: 0, place: .usual)
    _ = try disk.read(sector: 0, count: 512)
    third.close()
    try running.waitUntilSaid("it closed the connection, after 1 request\n")
    let fourth = try Frontend.connect(to: folder.path("s.sock"))
    _ = try fourth.ask(.getFeatures)
    running.terminate()
    #expect(try running.end(within: 10).errors.contains("this back-end was told to stop"))
  }
}
