import DMA
import HostIO
import SocketMessages
import Testing

@testable import VhostUser
@testable import VhostUserBackend

/// A channel and the front-end's end of it.
private final class ChannelRig {
  let channel: BackendChannel
  let theirs: UnixSocket
  var stream: MessageStream<MessageHeader>

  init() throws {
    let (ours, theirs) = try UnixSocket.pair()
    channel = try BackendChannel()
    _ = channel.replace(ours)
    self.theirs = theirs
    stream = MessageStream(theirs)
  }

  static func question(_ n: UInt64) -> PendingMisses.Question {
    PendingMisses.Question(key: PendingMisses.Key(page: n, .read), number: n)
  }

  /// Gathers questions; `isTaken`: whether the channel has to take them.
  func gather(_ numbers: Range<UInt64>, isTaken: Bool = true) {
    for n in numbers {
      let took = channel.gather(IOTLBMessage(kind: .miss, address: n << 12, permission: .read), Self.question(n))
      #expect(took == isTaken)
    }
  }

  /// The questions that the front-end gets now: addresses, and whether an answer is wanted.
  func heard() throws -> [(page: UInt64, needsReply: Bool)] {
    var all: [(page: UInt64, needsReply: Bool)] = []
    while let message = try stream.next() {
      guard case .iotlb(let one) = try BackendRequest(request: message.header.request, payload: message.payload) else {
        continue
      }
      all.append((one.address >> 12, message.header.needsReply))
    }
    return all
  }

  static func replies(_ numbers: Range<UInt64>) -> [BackendChannel.PendingReply] { numbers.map { .miss(question($0)) } }
}

@Suite("The back-end's channel") struct BackendChannelTests {
  @Test("What one look at a queue asks goes out together, and the last question alone asks for an answer")
  func together() throws {
    let rig = try ChannelRig()
    rig.gather(0..<5)
    #expect(try rig.heard().isEmpty)
    rig.channel.post()
    let heard = try rig.heard()
    #expect(heard.map(\.page) == [0, 1, 2, 3, 4])
    #expect(heard.map(\.needsReply) == [false, false, false, false, true])
    rig.channel.post()
    #expect(try rig.heard().isEmpty)
    #expect(rig.channel.takeAwaited() == ChannelRig.replies(0..<5) && rig.channel.takeAwaited() == nil)
  }

  @Test("Many go out before the batch is ended, and each piece has its answer")
  func many() throws {
    let rig = try ChannelRig()
    rig.gather(0..<150)
    let early = try rig.heard()
    #expect(early.count == 144)
    rig.channel.post()
    let heard = early + (try rig.heard())
    #expect(heard.map(\.page) == Array(0..<150))
    #expect(heard.enumerated().filter { $0.element.needsReply }.map(\.offset) == [47, 95, 143, 149])
    let told = (0..<5).map { _ in rig.channel.takeAwaited() }
    #expect(
      told == [
        ChannelRig.replies(0..<48), ChannelRig.replies(48..<96), ChannelRig.replies(96..<144),
        ChannelRig.replies(144..<150), nil,
      ])
  }

  @Test("A request of another kind does not overtake what was asked before it")
  func order() throws {
    let rig = try ChannelRig()
    rig.gather(0..<2)
    let fault = IOTLBMessage(kind: .accessFail, address: 9 << 12, permission: .read)
    #expect(rig.channel.send(.iotlb(fault), awaiting: nil))
    let heard = try rig.heard()
    #expect(heard.map(\.page) == [0, 1, 9] && heard.map(\.needsReply) == [false, true, false])
  }

  @Test("What does not fit goes out later, in order, and no question loses its answer")
  func full() throws {
    let rig = try ChannelRig()
    // Far more than a socket takes.
    for batch in UInt64(0)..<400 {
      rig.gather(batch * 50..<(batch + 1) * 50)
      rig.channel.post()
    }
    #expect(try rig.channel.backlog.wait(timeout: .zero))
    var heard = try rig.heard()
    #expect(heard.count < 20_000)
    while !rig.channel.flush() { heard += try rig.heard() }
    heard += try rig.heard()
    #expect(heard.map(\.page) == Array(0..<20_000))
    #expect(heard.filter(\.needsReply).count == 800)
    for batch in UInt64(0)..<400 {
      // A piece is 48 questions at most.
      let told = rig.channel.takeAwaited().map { $0 + (rig.channel.takeAwaited() ?? []) }
      #expect(told == ChannelRig.replies(batch * 50..<(batch + 1) * 50))
    }
  }

  @Test("A backlog that never ends, and never grows, is none that keeps questions from being asked")
  func backlog() throws {
    let rig = try ChannelRig()
    var heard = 0
    // More than may be unsent at once, one after the other, with some always left.
    for batch in UInt64(0)..<3000 {
      rig.gather(batch * 48..<(batch + 1) * 48)
      rig.channel.post()
      if batch < 200 { continue }
      for _ in 0..<48 { if let message = try rig.stream.next(), message.header.needsReply { heard += 1 } }
      #expect(!rig.channel.flush())
      while heard > 0, rig.channel.takeAwaited() != nil { heard -= 1 }
    }
  }

  @Test("A new channel hears of all that the old one did not answer, sent or gathered")
  func replaced() throws {
    let rig = try ChannelRig()
    rig.gather(0..<3)
    rig.channel.post()
    rig.gather(3..<5)
    let (ours, theirs) = try UnixSocket.pair()
    #expect(rig.channel.replace(ours) == ChannelRig.replies(0..<5))
    rig.stream = MessageStream(theirs)
    rig.channel.post()
    #expect(try rig.heard().isEmpty && rig.channel.takeAwaited() == nil)
  }

  @Test("Without a channel nothing is taken; on a lost one questions are kept")
  func lost() throws {
    let rig = try ChannelRig()
    rig.channel.lose()
    rig.gather(0..<2)
    #expect(rig.channel.replace(nil) == ChannelRig.replies(0..<2))
    rig.gather(0..<1, isTaken: false)
  }
}
