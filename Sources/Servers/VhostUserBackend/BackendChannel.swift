internal import DMA
internal import HostIO
internal import Synchronization
internal import VhostUser

/// The way from the back-end to the front-end: requests of ours, on a socket of their own.
///
/// Any thread sends, and none of them ever waits: what the socket does not take now is left for the control thread.
/// Answers come in the order of the requests that asked for one; the control thread takes them. A front-end serves
/// requests in their order, so an answer acknowledges all requests before it, too: of many questions only the last one
/// asks for one.
final class BackendChannel: Sendable {
  /// What an answer is about.
  enum PendingReply: Hashable, Sendable {
    case miss(PendingMisses.Question)
    /// The answer is ignored.
    case nothing
  }

  fileprivate struct Awaited {
    var reply: PendingReply
    /// An answer is asked for, which acknowledges everything before it, too.
    var hasAnswer: Bool
  }

  /// Whole messages that are sent with one call.
  fileprivate struct Piece {
    var bytes: [UInt8] = []
    var count = 0
    /// Where the last message's header begins.
    var last = 0

    mutating func add(_ message: [UInt8]) {
      last = bytes.count
      bytes += message
      count += 1
    }
  }

  fileprivate struct State {
    var socket: UnixSocket?
    /// What answers are about, oldest first, sent or not.
    var awaited = FIFO<Awaited>()
    /// Answers that were asked for and did not come yet.
    var due = 0
    /// Questions that go out together.
    var gathered = Piece()
    /// What the socket did not take, and how many messages that is.
    var unsent = FIFO<Piece>()
    var unsentCount = 0
    /// The front-end closed it, and may be gone: what is asked waits until that is known.
    var isLost = false

    /// Keeps a question that cannot be sent now. False if `reply` is `.none`: nothing waits for it.
    mutating func keep(_ reply: PendingReply?) -> Bool {
      guard case .miss = reply else { return false }
      awaited.append(Awaited(reply: reply!, hasAnswer: false))
      return true
    }
  }

  /// Questions of 44 bytes that go out in one piece. A stream socket takes whole or not at all what fits into half of
  /// its send buffer, less some 64 bytes: 2240 for the smallest there is.
  fileprivate static let gatheredLimit = 48
  /// Unsent messages are bounded: a front-end that reads nothing for so long is not going to.
  /// About 100 bytes each: 4 MiB.
  private static let unsentLimit = 40960
  /// So are answers that are due: one that reads and never answers is no better. 32 bytes each: 2 MiB.
  private static let awaitedLimit = 1 << 16

  private let state = Mutex(State())
  /// Signalled when something is left to be sent.
  let backlog: EventFD

  init() throws(HostError) { backlog = try EventFD() }

  /// The socket, if there is one.
  var socket: UnixSocket? { state.withLock { $0.socket } }

  /// Whether the channel was there and is of no use any more.
  var isLost: Bool { state.withLock { $0.isLost } }

  /// Uses `socket` from now on. Answers that were due on the old one never come; the questions that waited for them are
  /// returned.
  func replace(_ socket: UnixSocket?) -> [PendingReply] {
    state.withLock { state in
      let lost = (0..<state.awaited.count).map { state.awaited[$0].reply }
      state = State(socket: socket)
      return lost
    }
  }

  /// Uses the socket no more. Requests that ask for an answer are kept, for ``replace(_:)`` to return.
  func lose() {
    state.withLock { state in
      state.socket = nil
      state.drop()
    }
  }

  /// Keeps a question until ``post()``: the questions from one pass over a queue are sent together, and one answer
  /// acknowledges all of them. False if there is no channel.
  func gather(_ message: IOTLBMessage, _ question: PendingMisses.Question) -> Bool {
    let (accepted, isLeft) = state.withLock { state -> (Bool, Bool) in
      guard state.awaited.count < Self.awaitedLimit else { return (false, false) }
      if state.isLost { return (state.keep(.miss(question)), false) }
      guard state.socket != nil, state.unsentCount < Self.unsentLimit else { return (false, false) }
      state.gathered.add(BackendRequest.iotlb(message).encoded(needsReply: false))
      state.awaited.append(Awaited(reply: .miss(question), hasAnswer: false))
      return (true, state.gathered.count >= Self.gatheredLimit && state.post())
    }
    if isLeft { backlog.signal() }
    return accepted
  }

  /// Sends what was gathered, or leaves it for ``flush()``.
  func post() {
    if state.withLock({ $0.post() }) { backlog.signal() }
  }

  /// Sends a request, or leaves it for ``flush()``. With `reply` an answer is asked for. False if there is no channel.
  func send(_ request: BackendRequest, awaiting reply: PendingReply?) -> Bool {
    let (accepted, isLeft) = state.withLock { state -> (Bool, Bool) in
      guard reply == nil || state.awaited.count < Self.awaitedLimit else { return (false, false) }
      if state.isLost { return (state.keep(reply), false) }
      guard state.socket != nil, state.unsentCount < Self.unsentLimit else { return (false, false) }
      _ = state.post()
      if let reply {
        state.awaited.append(Awaited(reply: reply, hasAnswer: true))
        state.due += 1
      }
      var piece = Piece()
      piece.add(request.encoded(needsReply: reply != nil))
      return (true, state.put(piece))
    }
    if isLeft { backlog.signal() }
    return accepted
  }

  /// Sends what was left. True if everything is sent; otherwise wait until the socket is writable. The channel may be
  /// lost by then.
  func flush() -> Bool {
    state.withLock { state in
      guard let socket = state.socket, !state.isLost else { return true }
      while let oldest = state.unsent.first {
        switch Self.post(oldest.bytes, on: socket) {
        case .sent:
          _ = state.unsent.popFirst()
          state.unsentCount -= oldest.count
        case .full: return false
        case .broken: state.drop()
        }
      }
      return true
    }
  }

  /// The messages that a received answer acknowledges, in the order in which they were sent; nil if none was asked for.
  func takeAwaited() -> [PendingReply]? {
    state.withLock { state in
      guard state.due > 0 else { return nil }
      state.due -= 1
      var replies: [PendingReply] = []
      while let one = state.awaited.popFirst() {
        replies.append(one.reply)
        if one.hasAnswer { break }
      }
      return replies
    }
  }

  fileprivate enum Posted { case sent, full, broken }

  /// What is sent is smaller than what a stream socket takes as one piece (``gatheredLimit``), so it goes whole or not
  /// at all.
  fileprivate static func post(_ bytes: [UInt8], on socket: UnixSocket) -> Posted {
    switch try? socket.sendNow(bytes.span) {
    case .sent: .sent
    case .wouldBlock: .full
    case nil: .broken
    }
  }
}

extension BackendChannel.State {
  /// Sends what was gathered, the last of it with a request for an answer. True if something is left to be sent.
  fileprivate mutating func post() -> Bool {
    guard gathered.count > 0 else { return false }
    MessageHeader.askForReply(&gathered.bytes, at: gathered.last)
    awaited[awaited.count - 1].hasAnswer = true
    due += 1
    let isLeft = put(gathered)
    // Its room serves the next ones.
    gathered.bytes.removeAll(keepingCapacity: true)
    gathered.count = 0
    return isLeft
  }

  /// Sends a piece or keeps it. True if something is left to be sent, or the channel is lost.
  fileprivate mutating func put(_ piece: BackendChannel.Piece) -> Bool {
    guard let socket else { return false }
    if unsent.isEmpty {
      switch BackendChannel.post(piece.bytes, on: socket) {
      case .sent: return false
      case .full: break
      case .broken:
        drop()
        return true
      }
    }
    unsent.append(piece)
    unsentCount += piece.count
    return true
  }

  /// The channel is of no use any more. What asks for an answer is kept.
  fileprivate mutating func drop() {
    isLost = true
    unsent.removeAll()
    unsentCount = 0
    gathered = BackendChannel.Piece()
    due = 0
  }
}
