internal import DMA
internal import HostIO
internal import Synchronization

/// The way from the back-end to the front-end: requests of ours, on a socket of their own.
///
/// Any thread sends, and none of them ever waits: what the socket does not take now is left for the control thread. Answers
/// come in the order of the requests that asked for one; the control thread takes them.
final class BackendChannel: Sendable {
  /// What an answer is about.
  enum Matter: Hashable, Sendable {
    case miss(PendingMisses.Question)
    /// Nobody cares about the answer.
    case nothing
  }

  private struct State {
    var socket: UnixSocket?
    /// Requests that ask for an answer, oldest first, sent or not.
    var awaited = FIFO<Matter>()
    /// Whole messages that the socket did not take.
    var unsent = FIFO<[UInt8]>()
    /// The front-end closed it, and may be gone: what is asked waits until that is known.
    var isLost = false

    /// Keeps a question that cannot be sent now. False if `matter` is none: nothing waits for it.
    mutating func keep(_ matter: Matter?) -> Bool {
      guard case .miss = matter else { return false }
      awaited.append(matter!)
      return true
    }
  }

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

  /// Uses `socket` from now on. Answers that the old one owed never come; whoever waited for them is returned.
  func replace(_ socket: UnixSocket?) -> [Matter] {
    state.withLock { state in
      let lost = (0..<state.awaited.count).map { state.awaited[$0] }
      state = State(socket: socket)
      return lost
    }
  }

  /// Uses the socket no more. Requests that ask for an answer are kept, for ``replace(_:)`` to return.
  func lose() {
    state.withLock { state in
      state.socket = nil
      state.unsent.removeAll()
      state.isLost = true
    }
  }

  /// Sends a request, or leaves it for ``flush()``. With `matter` an answer is asked for. False if there is no channel.
  func send(_ request: BackendRequest, awaiting matter: Matter?) -> Bool {
    let (accepted, isLeft) = state.withLock { state -> (Bool, Bool) in
      guard matter == nil || state.awaited.count < Self.awaitedLimit else { return (false, false) }
      if state.isLost { return (state.keep(matter), false) }
      guard let socket = state.socket, state.unsent.count < Self.unsentLimit else { return (false, false) }
      let bytes = request.encoded(needsReply: matter != nil)
      if state.unsent.isEmpty {
        switch Self.post(bytes, on: socket) {
        case .sent: break
        case .full: state.unsent.append(bytes)
        case .broken:
          state.isLost = true
          return (state.keep(matter), true)
        }
      } else {
        state.unsent.append(bytes)
      }
      if let matter { state.awaited.append(matter) }
      return (true, !state.unsent.isEmpty)
    }
    if isLeft { backlog.signal() }
    return accepted
  }

  /// Sends what was left. True if everything is sent; otherwise wait until the socket is writable. The channel may be lost
  /// by then.
  func flush() -> Bool {
    state.withLock { state in
      guard let socket = state.socket, !state.isLost else { return true }
      while let oldest = state.unsent.first {
        switch Self.post(oldest, on: socket) {
        case .sent: _ = state.unsent.popFirst()
        case .full: return false
        case .broken:
          state.isLost = true
          state.unsent.removeAll()
        }
      }
      return true
    }
  }

  /// The request that an answer which just came belongs to, or nil if none was asked for.
  func takeAwaited() -> Matter? {
    state.withLock { $0.awaited.popFirst() }
  }

  private enum Posted { case sent, full, broken }

  /// A request is far smaller than what a stream socket takes as one piece, so it goes whole or not at all.
  private static func post(_ bytes: [UInt8], on socket: UnixSocket) -> Posted {
    do throws(HostError) {
      try socket.send(bytes.span, timeout: .zero)
      return .sent
    } catch {
      return error.name == "ETIMEDOUT" ? .full : .broken
    }
  }
}
