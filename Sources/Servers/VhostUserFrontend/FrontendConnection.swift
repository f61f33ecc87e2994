internal import DMA
internal import HostIO
internal import SocketMessages
internal import Synchronization
internal import VhostUser

/// The two sockets of a front-end, and the thread that reads them.
///
/// Requests may be sent by any thread. Answers come in the order of the requests, so each request that has one leaves a
/// note in `expected` while it is sent, and the thread matches them: no thread has to wait for an answer before the
/// next request is sent. So a miss can be answered while another thread waits for the acknowledgement of an
/// invalidation.
final class FrontendConnection: Sendable {
  /// What to do with an answer.
  enum Expected: Sendable {
    case wake(FrontendAnswer)
    /// An UPDATE's acknowledgement: then the miss behind it, if it wants one, gets its own.
    case update(thenMiss: Bool)
    case nothing
  }

  private struct State {
    var expected = FIFO<(request: UInt32, what: Expected)>()
    var failure: FrontendError?
    var channel: UnixSocket?
  }

  let socket: UnixSocket
  let timeout: Duration
  private let state = Mutex(State())
  let stopping: EventFD
  let wakeup: EventFD
  /// Signalled when the connection has ended.
  let ended: EventFD

  init(_ socket: UnixSocket, timeout: Duration) throws(HostError) {
    self.socket = socket
    self.timeout = timeout
    stopping = try EventFD()
    wakeup = try EventFD()
    ended = try EventFD()
  }

  /// Why the connection ended, or nil.
  var failure: FrontendError? { state.withLock { $0.failure } }

  /// The requests of the back-end come here from now on.
  func setChannel(_ channel: UnixSocket) {
    state.withLock { $0.channel = channel }
    wakeup.signal()
  }

  /// Where the back-end's requests come, if it has a channel.
  var channel: UnixSocket? { state.withLock { $0.channel } }

  func stop() {
    stopping.signal()
    socket.shutdown()
  }

  /// Ends the back-end's channel and nothing else.
  func stopChannel() { channel?.shutdown() }

  /// Sends a whole message and notes what its answer, if it has one, is for.
  func send(
    _ bytes: [UInt8], request: UInt32, descriptors: [Int32] = [], expecting what: Expected?
  ) throws(FrontendError) {
    try state.withLock { state throws(FrontendError) in
      if let failure = state.failure {
        // Every later request throws the first error, unless it was a plain end.
        if case .violation = failure { throw failure }
        throw .closed(FrontendRequest.name(of: request))
      }
      try rethrowing(
        socket.send(bytes.span, descriptors: descriptors, timeout: timeout),
        as: { (error: HostError) -> FrontendError in
          switch error.errno {
          case .timedOut: .timedOut(FrontendRequest.name(of: request))
          case .brokenPipe, .connectionReset: .closed(FrontendRequest.name(of: request))
          default: .host(error)
          }
        })
      if let what { state.expected.append((request, what)) }
    }
  }

  /// Answers a request of the back-end.
  func answer(_ request: UInt32, _ code: UInt64) {
    guard let channel else { return }
    let bytes = MessageHeader.frame(request: request, flags: MessageHeader.reply, payload: code.payload)
    // A back-end that does not read its answers harms itself only.
    try? channel.send(bytes.span, timeout: timeout)
  }

  /// Reads until stopped or the back-end closes. `requests` is called for the back-end's requests, on this thread.
  func run(_ requests: any FrontendChannelDelegate) {
    let reason: FrontendError
    do throws(FrontendError) {
      var loop = try FrontendLoop(self, requests)
      try loop.run()
      reason = .closed("")
    } catch {
      reason = error
    }
    var left = state.withLock { state in
      let left = state.expected
      state.expected.removeAll()
      state.failure = reason
      return left
    }
    // Ends a back-end's wait for us, too.
    socket.shutdown()
    while let (request, what) = left.popFirst() {
      guard case .wake(let answer) = what else { continue }
      if case .violation = reason {
        answer.fail(reason)
      } else {
        answer.fail(.closed(FrontendRequest.name(of: request)))
      }
    }
    ended.signal()
  }

  /// Whether a request stops rings.
  private static func mayStop(_ request: UInt32?) -> Bool {
    let stops: [FrontendRequest.Kind] = [
      .getVringBase, .setVringEnable, .setVringAddress, .setStatus, .resetDevice, .resetOwner, .setOwner,
    ]
    return stops.contains { $0.rawValue == request }
  }

  /// Matches an answer with its request.
  func take(_ message: consuming IncomingMessage<MessageHeader>) throws(FrontendError) {
    let name = FrontendRequest.name(of: message.header.request)
    guard message.header.isReply else {
      throw .violation(ProtocolError(name, "a request came on the front-end's socket"))
    }
    let request = message.header.request
    let expected = state.withLock { state in
      // A ring may need a translation before it can stop: that message's answer then comes before the stop's.
      guard request == FrontendRequest.Kind.iotlb.rawValue, Self.mayStop(state.expected.first?.request) else {
        return state.expected.popFirst()
      }
      return state.expected.removeFirst { $0.request == request }
    }
    guard let expected else { throw .violation(ProtocolError(name, "an answer that was not asked for")) }
    guard expected.request == message.header.request else {
      let wanted = FrontendRequest.name(of: expected.request)
      let error = FrontendError.violation(ProtocolError(name, "the answer to \(wanted) was due"))
      if case .wake(let answer) = expected.what { answer.fail(error) }
      throw error
    }
    switch expected.what {
    case .nothing: break
    case .wake(let answer): answer.succeed(message)
    case .update(let thenMiss):
      let code = try rethrowing(UInt64(payload: message.payload, of: name), as: FrontendError.violation)
      updated(code, thenMiss: thenMiss)
    }
  }

  /// UPDATEs the back-end refused.
  let refusedUpdates = Atomic<UInt64>(0)

  private func updated(_ code: UInt64, thenMiss: Bool) {
    if code != 0 { refusedUpdates.add(1, ordering: .relaxed) }
    if thenMiss { answer(BackendRequest.Kind.iotlb.rawValue, code == 0 ? 0 : 1) }
  }
}

/// What a front-end does about its back-end's requests, on the connection's thread.
protocol FrontendChannelDelegate: AnyObject, Sendable {
  func take(_ request: BackendRequest, needsReply: Bool)
  /// How long until something delayed is due; nil for nothing.
  var nextDeadline: Duration? { get }
  func doDelayed()
  func doReleased()
}

/// An answer that a thread waits for.
final class FrontendAnswer: Sendable {
  private struct State: ~Copyable {
    var message: IncomingMessage<MessageHeader>?
    var failure: FrontendError?
  }
  private let state = Mutex(State())
  private let done: EventFD

  init() throws(FrontendError) { done = try rethrowing(EventFD(), as: FrontendError.host) }

  func succeed(_ message: consuming IncomingMessage<MessageHeader>) {
    var message = Optional(message)
    state.withLock { $0.message = message.take() }
    done.signal()
  }

  func fail(_ error: FrontendError) {
    state.withLock { $0.failure = error }
    done.signal()
  }

  /// Waits until it is here.
  func wait(for name: String, timeout: Duration) throws(FrontendError) -> IncomingMessage<MessageHeader> {
    guard try rethrowing(done.wait(timeout: timeout), as: FrontendError.host) else { throw .timedOut(name) }
    var taken: IncomingMessage<MessageHeader>?
    let failure = state.withLock { state in
      taken = state.message.take()
      return state.failure
    }
    if let failure { throw failure }
    guard let message = taken.take() else { throw .timedOut(name) }
    return message
  }
}
