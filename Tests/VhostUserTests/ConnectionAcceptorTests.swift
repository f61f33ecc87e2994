import HostIO
import Logging
import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

@Suite("Connections that wait, and what the log says of them", .timeLimit(.minutes(10)))
struct ConnectionAcceptorTests {
  final class House {
    let path = "/tmp/sluice-test-\(UInt32.random(in: 0 ... .max)).sock"
    let lines = LogLines()
    let server: VhostUserServer
    private let thread: WorkerThread

    init() throws {
      let server = try VhostUserServer(MemoryDisk(sectors: 8), at: path, log: lines.logger)
      self.server = server
      thread = try WorkerThread(name: "be") { try? server.run() }
    }

    deinit { close() }

    func close() {
      server.stop()
      thread.join()
    }

    func knock() throws -> UnixSocket {
      let socket = try UnixSocket.connect(to: path)
      try socket.send(FrontendRequest.getQueueCount.encoded().span, timeout: .seconds(5))
      return socket
    }

    /// Whether it is answered in the time; false too when it is sent away.
    func isAnswered(_ socket: UnixSocket, within time: Duration) throws -> Bool {
      guard try socket.waitReadable(timeout: time) else { return false }
      return (try? RawFrontend.receive(socket)) != nil && !socket.isHungUp
    }
  }

  @Test("No more than 64 front-ends wait; those that give up make room, and the next in line is served")
  func bounded() throws {
    let house = try House()
    var present: UnixSocket? = try house.knock()
    #expect(try house.isAnswered(present!, within: .seconds(10)))
    var waiting = try (0..<ConnectionAcceptor.waitingLimit).map { _ in try house.knock() }
    // The one too many is sent away, with an end and without a word.
    let extra = try house.knock()
    #expect(try extra.waitReadable(timeout: .seconds(10)))
    let answer = try? RawFrontend.receive(extra)
    #expect(answer == nil)
    // A connection that ends is dropped: another finds room.
    waiting.removeSubrange(0..<8)
    var last: UnixSocket?
    let hasRoom = try eventually {
      let one = try house.knock()
      if try !one.waitReadable(timeout: .milliseconds(50)) { last = one }
      return last != nil
    }
    #expect(hasRoom)
    present = nil
    #expect(try house.isAnswered(waiting[0], within: .seconds(10)))
    #expect(house.lines.all.filter { $0.contains("connected and waits") }.count == 1)
  }

  @Test(
    "A front-end whose requests are refused thousands of times writes a few lines, and so do thousands that are sent away"
  )
  func quiet() throws {
    let house = try House()
    let socket = try UnixSocket.connect(to: house.path)
    try socket.send(FrontendRequest.setProtocolFeatures(.replyAck).encoded().span)
    let refused = FrontendRequest.resetDevice.encoded(needsReply: true)
    for _ in 0..<40 {
      for _ in 0..<50 { try socket.send(refused.span, timeout: .seconds(5)) }
      for _ in 0..<50 {
        let answer = try RawFrontend.receive(socket)
        #expect(answer?.1.word == 1)
      }
    }
    socket.shutdown()
    for _ in 0..<200 {
      let one = try UnixSocket.connect(to: house.path)
      // An unknown request.
      try? one.send(MessageHeader(request: 99, flags: 1, size: 0).encoded.span)
      _ = try one.waitReadable(timeout: .seconds(10))
    }
    let lines = house.lines.all
    #expect(lines.filter { $0.contains("request refused") }.count <= LogQuota.lines)
    // Connected, gone, and why.
    #expect(lines.count <= 6 * LogQuota.lines, "\(lines.count) lines")
  }
}
