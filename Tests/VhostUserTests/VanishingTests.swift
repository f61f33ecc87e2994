import HostIO
import Testing
import Virtio
import VirtioServing

@testable import VhostUser
@testable import VhostUserBackend

/// A ring whose areas are mapped, and a read whose parts are not.
private func waitingRead() throws -> RawFrontend {
  let frontend = try RawFrontend.sharing([.version1, .accessPlatform])
  try frontend.must(.iotlb(frontend.update(RawFrontend.iova + 0x1000, size: 0x3000)))
  try frontend.startRing(base: RawFrontend.iova)
  return frontend
}

/// A front-end that dies closes its sockets one after the other, in any order and at any time.
@Suite("Front-ends that vanish behind an IOMMU", .timeLimit(.minutes(10))) struct VanishingTests {
  enum Way: String, CaseIterable {
    /// The question is on its way when the sockets close.
    case asked, askedChannelFirst, askedSocketFirst
    /// The channel is closed before the question is sent.
    case unasked
  }

  @Test("A request that waits for a translation stays in the ring for the next front-end", arguments: Way.allCases)
  func stays(_ way: Way) throws {
    let frontend = try waitingRead()
    let channel = try #require(frontend.channel)
    if way == .unasked { channel.shutdown() }
    frontend.submitRead(sector: 1, base: RawFrontend.iova)
    if way != .unasked { #expect(try frontend.heard() != nil) }
    switch way {
    case .asked:
      channel.shutdown()
      frontend.socket.shutdown()
    case .askedSocketFirst:
      frontend.socket.shutdown()
      channel.shutdown()
    case .askedChannelFirst, .unasked:
      channel.shutdown()
      // Long after it, as threads count time: all that the channel's end causes has happened.
      #expect(try frontend.call.wait(timeout: .milliseconds(300)) == false, "nothing is used")
      frontend.socket.shutdown()
    }
    let begun = ContinuousClock.now
    while frontend.server.statistics.isConnected, begun.duration(to: .now) < .seconds(5) {}
    #expect(!frontend.server.statistics.isConnected)
    #expect(frontend.usedIndex == 0 && frontend.peek(1, RawFrontend.Place.status) == [0xff])
    #expect(frontend.server.statistics.iotlb.faults == 0)
  }

  @Test("A front-end that lives on without its channel hears of an error, not of nothing", arguments: [false, true])
  func fails(_ isAsked: Bool) throws {
    let frontend = try waitingRead()
    let channel = try #require(frontend.channel)
    if !isAsked { channel.shutdown() }
    // The status can be written: the error is the request's.
    try frontend.must(.iotlb(frontend.update(RawFrontend.iova + 0x4000, size: 0x2000)))
    frontend.submitRead(sector: 1, base: RawFrontend.iova)
    if isAsked {
      #expect(try frontend.heard() != nil)
      channel.shutdown()
    }
    #expect(try frontend.waitUsed(1))
    #expect(frontend.peek(1, RawFrontend.Place.status) == [1])
    // With a new one it is served as before.
    try frontend.openChannel()
    frontend.submitRead(sector: 2, base: RawFrontend.iova)
    #expect(try frontend.serveMisses { frontend.usedIndex == 2 }.count == 1)
    #expect(frontend.peek(1, RawFrontend.Place.status) == [0])
    #expect(frontend.peek(512, RawFrontend.Place.data) == Array(frontend.disk.contents[1024..<1536]))
  }

  @Test("What was asked on a channel that is gone is asked again on the next one", arguments: [false, true])
  func asksAgain(_ isClosed: Bool) throws {
    let frontend = try waitingRead()
    frontend.submitRead(sector: 1, base: RawFrontend.iova)
    #expect(try frontend.heard() != nil)
    let old = try #require(frontend.channel)
    if isClosed { old.shutdown() }
    try frontend.openChannel()
    #expect(!(try frontend.serveMisses { frontend.usedIndex == 1 }).isEmpty)
    #expect(frontend.peek(1, RawFrontend.Place.status) == [0])
    withExtendedLifetime(old) {}
  }

  @Test("A front-end that goes with an answer unread has closed the connection, and nothing failed")
  func unread() throws {
    let backend = try BackendThread(MemoryDisk(sectors: 8))
    try backend.socket.send(FrontendRequest.getQueueCount.encoded().span, timeout: .seconds(5))
    #expect(try backend.socket.waitReadable(timeout: .seconds(10)))
    backend.hangUp()
    backend.join()
    #expect(backend.server.statistics.failedSessions == 0 && backend.server.statistics.sessions == 1)
  }
}
