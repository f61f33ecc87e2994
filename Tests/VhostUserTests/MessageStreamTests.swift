import HostIO
import SocketMessages
import Testing
import VirtioTestKit

@testable import VhostUser

/// What is sent, and what has to come out: a message's request, its payload, and how many descriptors it brought.
private struct Sent: Equatable {
  var request: UInt32
  var payload: [UInt8]
  var descriptors: Int

  var bytes: [UInt8] { MessageHeader.frame(request: request, flags: 0, payload: payload) }
}

@Suite("Messages on a stream of bytes") struct MessageStreamTests {
  private static let translation = FrontendRequest.Kind.iotlb.rawValue
  private static let kick = FrontendRequest.Kind.setVringKick.rawValue

  private static func translation(_ n: Int) -> Sent {
    Sent(request: translation, payload: [UInt8](repeating: UInt8(truncatingIfNeeded: n), count: 32), descriptors: 0)
  }

  private func take(_ stream: inout MessageStream<MessageHeader>) throws -> Sent? {
    guard let message = try stream.next() else { return nil }
    return Sent(request: message.header.request, payload: message.payload, descriptors: message.descriptors.count)
  }

  @Test("In pieces of any sizes, every message comes out whole and with its own descriptors", arguments: 0..<40)
  func pieces(seed: UInt64) throws {
    let (ours, theirs) = try UnixSocket.pair()
    var random = SeededGenerator(seed)
    let files = [try EventFD(), try EventFD(), try EventFD()]
    var expected: [Sent] = []
    var stream = MessageStream<MessageHeader>(ours)
    var heard: [Sent] = []
    for n in 0..<300 {
      let sent: Sent
      switch Int.random(in: 0..<6, using: &random) {
      case 0:
        let count = Int.random(in: 0..<3, using: &random) + 1
        sent = Sent(request: Self.kick, payload: [UInt8](repeating: UInt8(n & 255), count: 8), descriptors: count)
      case 1: sent = Sent(request: 1, payload: [], descriptors: 0)
      case 2:
        sent = Sent(
          request: 4, payload: [UInt8](repeating: 7, count: Int.random(in: 0..<4096, using: &random)), descriptors: 0)
      default: sent = Self.translation(n)
      }
      expected.append(sent)
      // Descriptors go with the first piece of their message, as every sender has it.
      var rest = sent.bytes[...]
      var passed = files.prefix(sent.descriptors).map(\.rawValue)
      while !rest.isEmpty {
        let piece = Array(
          rest.prefix(
            Int.random(in: 0..<4, using: &random) == 0 ? Int.random(in: 0..<rest.count, using: &random) + 1 : rest.count
          ))
        try theirs.send(piece.span, descriptors: passed)
        passed = []
        rest = rest.dropFirst(piece.count)
        if Int.random(in: 0..<3, using: &random) == 0 { while let one = try take(&stream) { heard.append(one) } }
      }
    }
    while let one = try take(&stream) { heard.append(one) }
    #expect(heard == expected)
  }

  @Test("Of messages sent as one piece the first one has the descriptors")
  func onePiece() throws {
    let (ours, theirs) = try UnixSocket.pair()
    var stream = MessageStream<MessageHeader>(ours)
    let file = try EventFD()
    for n in 0..<2 { try theirs.send(Self.translation(n).bytes.span) }
    for _ in 0..<2 { _ = try take(&stream) }
    let kick = Sent(request: Self.kick, payload: [UInt8](repeating: 1, count: 8), descriptors: 1)
    let enable = Sent(
      request: FrontendRequest.Kind.setVringEnable.rawValue, payload: [UInt8](repeating: 2, count: 8), descriptors: 0)
    try theirs.send((kick.bytes + enable.bytes).span, descriptors: [file.rawValue])
    #expect(try take(&stream) == kick)
    #expect(try take(&stream) == enable)
    #expect(try take(&stream) == nil)
  }

  @Test("The end is told apart: between two messages, and within one that was expected whole")
  func ends() throws {
    for isCut in [false, true] {
      let (ours, theirs) = try UnixSocket.pair()
      var stream = MessageStream<MessageHeader>(ours)
      for n in 0..<3 { try theirs.send(Self.translation(n).bytes.span) }
      if isCut { try theirs.send(Array(Self.translation(9).bytes.prefix(30)).span) }
      theirs.shutdown()
      for n in 0..<3 { #expect(try take(&stream) == Self.translation(n)) }
      do throws(StreamEnding) {
        _ = try stream.next()
        Issue.record("no end")
      } catch {
        switch error {
        case .closed: #expect(!isCut)
        case .cut: #expect(isCut)
        default: Issue.record("\(error)")
        }
      }
    }
  }
}
