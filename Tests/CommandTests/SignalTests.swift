import Foundation
import FrontendKit
import Testing
import VhostUserFrontend
import Virtio
import VirtioTestKit

@Suite("A command and signals", .serialized, .timeLimit(.minutes(10))) struct SignalTests {
  private let folder: TemporaryFolder

  init() throws { folder = try TemporaryFolder() }

  @Test(
    "SIGINT, SIGTERM and SIGHUP end it cleanly, with a front-end or without, and take the socket along",
    arguments: [
      (SIGINT, true), (SIGTERM, true), (SIGHUP, true), (SIGINT, false), (SIGTERM, false), (SIGHUP, false),
    ])
  func ended(_ signal: Int32, _ hasFrontend: Bool) throws {
    let running = try folder.serve()
    let frontend = hasFrontend ? try Frontend.connect(to: folder.path("s.sock")) : nil
    if let frontend { try frontend.negotiate([.version1]) }
    kill(running.process.processIdentifier, signal)
    // Nothing has to be waited for where nobody is served.
    #expect(try running.end(within: signal == SIGTERM && !hasFrontend ? 1 : 10).status == 0)
    #expect(!FileManager.default.fileExists(atPath: folder.path("s.sock")))
    withExtendedLifetime(frontend) {}
  }

  @Test("SIGUSR1 writes what `sluice explain` would answer, and it goes on")
  func report() throws {
    let running = try folder.serve(with: "--log-level", "error")
    #expect(running.said == "")
    kill(running.process.processIdentifier, SIGUSR1)
    try running.waitUntilSaid("requests")
    let words = try Command.run("explain", folder.path("s.sock")).output.split(separator: "\n")
    for line in words { #expect(running.said.contains(line)) }
    try running.expectCleanEnd()
  }

  @Test(
    "A stop that waits for storage says so, with the queue and the option of a second signal, which ends it at once",
    .enabled { SlowDisk.isThere() })
  func stuck() throws {
    // A flush that is not answered within any time this test may take.
    var storage: SlowDisk? = try SlowDisk(byteCount: 1 << 20, flush: 3_600_000)
    let image = try #require(storage?.path).replacing("/self/", with: "/\(getpid())/")
    let running = try folder.serve(image, socket: "s.sock", "--lock", "off")
    let frontend = try folder.connect([.version1, .blockFlush], sharing: 8 << 20)
    do {
      var disk = try BlockClient(frontend, queue: 0, place: .usual)
      #expect(try disk.add(.flush, sector: 0, count: 0) != nil)
      disk.publish()
      try running.waitUntilTaken(1, folder)
      running.terminate()
      try running.waitUntilSaid("waiting for 1 request of virtqueue 0")
      #expect(running.said.contains("a second signal ends at once"))
      running.terminate()
    }
    try running.waitUntilSaid("a second signal: ending at once")
    // The kernel keeps a thread that is in a call of this file system until the call ends. A stop that had waited for
    // the request would be a clean one, whose status is 0.
    storage = nil
    #expect(try running.end(within: 20).status == 1)
    #expect(!FileManager.default.fileExists(atPath: folder.path("s.sock")))
  }
}
