internal import HostIO

/// A message as it came: header, payload, and the descriptors beside it, which are closed with it unless somebody takes them.
struct IncomingMessage: ~Copyable {
  var header: MessageHeader
  var payload: [UInt8]
  var descriptors: FileDescriptorList
}

/// Takes messages off a socket without waiting, whatever the pieces they come in.
///
/// As a rule a header and its payload are received with separate calls, so that descriptors are never credited to the wrong message:
/// they travel with a message's first byte. Translations come by the thousand, all of one length and without descriptors,
/// and each of them has somebody waiting: after two messages of one kind and length, a call takes as many bytes as
/// another one would have.
///
/// Such a call may take another message's first bytes, and descriptors with them. The kernel ends a receive behind the piece
/// that descriptors were sent with, so they are the last message's that begins in what was received; should somebody have sent
/// several messages as one piece, the last one's that may have any.
struct MessageStream: ~Copyable {
  enum Ending: Error {
    /// The peer closed, between two messages.
    case closed
    /// The peer closed within a message.
    case cut
    case host(HostError)
    case peer(ProtocolError)
  }

  /// A message has at most eight descriptors; more than this many are an attack on our table of open files.
  private static let descriptorLimit = 32
  /// The longest message of which another one is expected.
  private static let guessLimit = 64

  let socket: UnixSocket
  private let mayCarry: @Sendable (UInt32) -> Bool
  private var bytes: [UInt8]
  /// Bytes of no message that was returned: from here to `filled`.
  private var first = 0
  private var filled = 0
  private var header: MessageHeader?
  private var descriptors = FileDescriptorList()
  /// Where the message begins that `descriptors` are of.
  private var owner = 0
  private var last: (request: UInt32, count: Int) = (0, 0)
  /// Bytes that the next message is thought to have.
  private var guess = MessageHeader.byteCount

  /// - Parameter mayCarry: whether descriptors may come with a request of that number.
  init(_ socket: UnixSocket, mayCarry: @escaping @Sendable (UInt32) -> Bool = { _ in true }) {
    self.socket = socket
    self.mayCarry = mayCarry
    bytes = [UInt8](repeating: 0, count: MessageHeader.byteCount + Int(MessageHeader.payloadLimit) + Self.guessLimit)
  }

  /// How often the socket was asked: what messages cost.
  private(set) var calls = 0

  /// Whether everything that was received has been returned.
  var isEmpty: Bool { first == filled }

  /// The next message, or nil when it is not all here yet.
  mutating func next() throws(Ending) -> IncomingMessage? {
    while true {
      var need = MessageHeader.byteCount
      if filled - first >= need {
        let header: MessageHeader
        if let known = self.header { header = known } else { header = try decoded(at: first) }
        self.header = header
        need += Int(header.size)
        if filled - first >= need { return take(header, need) }
      }
      guard try receive(need) else { return nil }
      guard descriptors.count <= Self.descriptorLimit else {
        throw .peer(ProtocolError("message", "\(descriptors.count) descriptors are more than \(Self.descriptorLimit)"))
      }
    }
  }

  private func decoded(at place: Int) throws(Ending) -> MessageHeader {
    do throws(ProtocolError) {
      return try MessageHeader(decoding: Array(bytes[place..<place + MessageHeader.byteCount]))
    } catch {
      throw .peer(error)
    }
  }

  /// Receives what is here of the message at `first`, of which `need` bytes are known to come. False if nothing is.
  private mutating func receive(_ need: Int) throws(Ending) -> Bool {
    var count = need - (filled - first)
    if isEmpty {
      first = 0
      filled = 0
      count = max(need, guess)
    } else if first + need > bytes.count {
      for i in first..<filled { bytes[i - first] = bytes[i] }
      owner -= first
      filled -= first
      first = 0
    }
    let before = descriptors.count
    switch try receive(atMost: count) {
    case .nothingYet: return false
    case .closed: throw isEmpty ? .closed : .cut
    case .bytes(let more): filled += more
    }
    if before == 0, descriptors.count > 0 { owner = begun() }
    return true
  }

  private mutating func receive(atMost count: Int) throws(Ending) -> UnixSocket.Received {
    calls += 1
    var all: [UInt8] = []
    swap(&all, &bytes)
    defer { swap(&all, &bytes) }
    do throws(HostError) {
      var span = all.mutableSpan
      var room = span.extracting(filled..<filled + count)
      return try socket.receive(into: &room, descriptors: &descriptors)
    } catch {
      // A peer that goes with bytes of ours unread resets the connection.
      if error.name == "ECONNRESET" { return .closed }
      throw .host(error)
    }
  }

  /// Where the message begins whose descriptors were just received.
  private func begun() -> Int {
    var place = first
    var found = first
    while place < filled {
      // One whose number is not here yet may have any. What is no message ends the connection when its turn comes.
      guard filled - place >= MessageHeader.byteCount, let header = try? decoded(at: place) else { return place }
      if mayCarry(header.request) { found = place }
      place += MessageHeader.byteCount + Int(header.size)
    }
    return found
  }

  private mutating func take(_ header: MessageHeader, _ count: Int) -> IncomingMessage {
    let payload = Array(bytes[first + MessageHeader.byteCount..<first + count])
    var taken = FileDescriptorList()
    if descriptors.count > 0, owner == first {
      while let one = descriptors.takeFirst() { taken.append(one) }
    }
    let isAgain = last == (header.request, count) && taken.count == 0 && count <= Self.guessLimit
    guess = isAgain ? count : MessageHeader.byteCount
    last = (header.request, count)
    first += count
    self.header = nil
    return IncomingMessage(header: header, payload: payload, descriptors: taken)
  }
}
