internal import DMA
internal import HostIO
internal import SocketMessages
internal import VhostUser

/// What the thread of a front-end's connection waits for, and what it does then.
struct FrontendLoop: ~Copyable {
  private enum Source: UInt64 { case stop, main, channel, wakeup }

  private let connection: FrontendConnection
  private let delegate: any FrontendChannelDelegate
  private let poller: Poller
  private var main: MessageStream<MessageHeader>
  /// Messages of the back-end's channel; nil while there is none, and when it was given up.
  private var channel: MessageStream<MessageHeader>?
  /// The channel that is watched, or was.
  private var channelSocket: UnixSocket?

  init(_ connection: FrontendConnection, _ delegate: any FrontendChannelDelegate) throws(FrontendError) {
    self.connection = connection
    self.delegate = delegate
    main = MessageStream(connection.socket)
    let poller = try rethrowing(Poller(), as: FrontendError.host)
    try rethrowing(poller.add(connection.stopping, token: Source.stop.rawValue), as: FrontendError.host)
    try rethrowing(poller.add(connection.socket.rawValue, token: Source.main.rawValue), as: FrontendError.host)
    try rethrowing(poller.add(connection.wakeup, token: Source.wakeup.rawValue), as: FrontendError.host)
    self.poller = poller
  }

  /// Goes on until the connection is stopped.
  mutating func run() throws(FrontendError) {
    var ready = ReadySet()
    while true {
      let (poller, limit) = (poller, delegate.nextDeadline)
      _ = try rethrowing(poller.wait(into: &ready, timeout: limit), as: FrontendError.host)
      delegate.doDelayed()
      for i in ready.indices {
        switch Source(rawValue: ready.token(i)) {
        case .stop, nil: return
        case .main: try readMain()
        case .channel: try readChannel()
        case .wakeup: try wakeUp()
        }
      }
    }
  }

  private mutating func readMain() throws(FrontendError) {
    while let message = try Self.next(&main) { try connection.take(message) }
  }

  /// Does what another thread left to this one, and goes over to a new channel if there is one.
  private mutating func wakeUp() throws(FrontendError) {
    let (poller, wakeup) = (poller, connection.wakeup)
    _ = try rethrowing(wakeup.drain(), as: FrontendError.host)
    delegate.doReleased()
    guard let fresh = connection.channel, fresh !== channelSocket else { return }
    if let channelSocket { try? poller.remove(channelSocket.rawValue) }
    try rethrowing(poller.add(fresh.rawValue, token: Source.channel.rawValue), as: FrontendError.host)
    channelSocket = fresh
    channel = MessageStream(fresh)
  }

  private mutating func readChannel() throws(FrontendError) {
    guard var stream = channel.take() else { return }
    do throws(FrontendError) {
      while let message = try Self.next(&stream) {
        delegate.take(try Self.request(in: message), needsReply: message.header.needsReply)
      }
    } catch {
      if case .violation = error { throw error }
      // The back-end may give its channel up; the main socket says how the session goes on.
      if let channelSocket { try? poller.remove(channelSocket.rawValue) }
      return
    }
    channel = consume stream
  }

  private static func request(
    in message: borrowing IncomingMessage<MessageHeader>
  ) throws(FrontendError) -> BackendRequest {
    let request = message.header.request
    guard !message.header.isReply else {
      throw .violation(ProtocolError(BackendRequest.name(of: request), "an answer to nothing"))
    }
    return try rethrowing(BackendRequest(request: request, payload: message.payload), as: FrontendError.violation)
  }

  private static func next(
    _ stream: inout MessageStream<MessageHeader>
  ) throws(FrontendError) -> IncomingMessage<MessageHeader>? {
    try rethrowing(
      stream.next(),
      as: { (ending: StreamEnding) -> FrontendError in
        switch ending {
        case .closed, .cut: .closed("")
        case .host(let error): .host(error)
        case .peer(let error): .violation(error)
        }
      })
  }
}
