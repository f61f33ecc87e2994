import Foundation
import HostIO
import Testing
import VhostUser
import VhostUserFrontend
import Virtio
import VirtioTestKit

@Suite("A back-end that runs out of descriptors", .timeLimit(.minutes(10))) struct ShortageTests {
  /// A disk whose process may have that many descriptors open.
  private final class Poor {
    private let folder: TemporaryFolder
    let socket: String
    let running: Command.Running

    init(descriptors: Int) throws {
      folder = try TemporaryFolder()
      let socket = folder.path("s.sock")
      self.socket = socket
      running = try Command.Running(
        ["serve", "blk", "--socket-path", socket, "--blk-file", folder.image()],
        through: [
          // Without descriptors that another test, beside this one, had open when the process was started.
          "/bin/bash", "-c", #"for n in /proc/$$/fd/*; do n=${n##*/}; ((n > 2)) && eval "exec $n>&-"; done; exec "$@""#,
          "poor", "/usr/bin/prlimit", "--nofile=\(descriptors):\(descriptors)",
        ])
      _ = eventually(every: .milliseconds(5)) { FileManager.default.fileExists(atPath: socket) }
    }

    deinit {
      running.process.terminate()
      _ = try? running.end(within: 10)
    }

    /// As many connections as there is room for, and what each says first.
    func crowd(_ count: Int, saying bytes: [UInt8]) throws -> [UnixSocket] {
      var all: [UnixSocket] = []
      for _ in 0..<count {
        guard let one = try? UnixSocket.connect(to: socket, timeout: .milliseconds(300)) else { break }
        if !bytes.isEmpty { try? one.send(bytes.span, timeout: .seconds(1)) }
        all.append(one)
      }
      return all
    }

    /// Processor time so far, in seconds.
    var processorTime: Double {
      let text = (try? String(contentsOfFile: "/proc/\(running.process.processIdentifier)/stat", encoding: .utf8)) ?? ""
      guard let end = text.lastIndex(of: ")") else { return 0 }
      let fields = text[text.index(after: end)...].split(separator: " ")
      return fields.count > 12 ? (Double(fields[11]) ?? 0) / 100 + (Double(fields[12]) ?? 0) / 100 : 0
    }

    /// A front-end that is served: it has an answer to its first question.
    func isServed(within time: Duration) throws -> Bool {
      let end = ContinuousClock.now + time
      while ContinuousClock.now < end {
        guard let frontend = try? Frontend.connect(to: socket, timeout: .seconds(5)) else { continue }
        if (try? frontend.negotiate(.version1)) != nil { return true }
      }
      return false
    }
  }

  @Test("waits without work while front-ends take all there are, says so once, and goes on when they have gone")
  func waits() throws {
    let poor = try Poor(descriptors: 40)
    var crowd = try poor.crowd(80, saying: FrontendRequest.getFeatures.encoded())
    try #require(crowd.count > 30)
    let before = poor.processorTime
    // Time, because the test is that nothing happens.
    Thread.sleep(forTimeInterval: 2)
    #expect(poor.processorTime - before < 0.5)
    let lines = poor.running.said.split(separator: "\n")
    #expect(lines.filter { $0.contains("connections have to wait") }.count == 1, "\(lines)")
    #expect(lines.count < 10, "\(lines)")
    crowd = []
    #expect(try poor.isServed(within: .seconds(60)), "\(poor.running.said)")
  }

  @Test("serves a front-end while connections that say nothing take all there are")
  func silence() throws {
    let poor = try Poor(descriptors: 24)
    let crowd = try poor.crowd(40, saying: [])
    #expect(try poor.isServed(within: .seconds(60)), "\(poor.running.said)")
    #expect(poor.running.process.isRunning)
    let lines = poor.running.said.split(separator: "\n")
    // Of each kind 16 at most (LogQuota): a connection that comes, one that breaks off, and what is short.
    #expect(lines.count < 64, "\(lines)")
    withExtendedLifetime(crowd) {}
  }
}
