internal import HostIO
internal import Logging
internal import SocketMessages
internal import VhostUser

/// The back-end's channel as the control thread sees it.
///
///     none ──SET_BACKEND_REQ_FD──▶ open ──closed──▶ lost ──a second──▶ none
///                                   ▲                │
///                                   └──another one───┘
///
/// A front-end that vanishes closes two sockets, and either may be noticed first. So a lost channel answers no
/// question: what was asked on it stays open. If the connection ends, too, the chains that wait stay in the ring and in
/// the in-flight memory for the next front-end; they are refused only if the front-end is still connected and has given
/// no other channel in a second.
extension BackendSession {
  /// How long a front-end that has lost the channel may take to vanish, or to give another one.
  static let channelPatience = Duration.seconds(1)

  func flushChannel() {
    guard let socket = channel.socket, channelStream != nil else { return }
    let isEmpty = channel.flush()
    if channel.isLost { return loseChannel("it cannot be written to") }
    guard watchesChannelRoom == isEmpty else { return }
    watchesChannelRoom = !isEmpty
    try? poller.modify(
      socket.rawValue, token: Token.channel, for: watchesChannelRoom ? [.readable, .writable] : .readable)
  }

  /// Takes answers. What the front-end sent on the main socket before an answer was there is served first: an update
  /// always precedes the answer to its question.
  func serveChannel(_ stop: EventFD) throws(Ending) {
    var replies: [BackendChannel.PendingReply] = []
    do throws(StreamEnding) {
      while let message = try channelStream?.next() {
        guard message.header.isReply, let told = channel.takeAwaited() else {
          throw .peer(
            ProtocolError("back-end channel", "message \(message.header.request) answers nothing that was asked"))
        }
        replies += told
      }
    } catch {
      switch error {
      case .closed, .cut: loseChannel("the front-end closed it")
      case .host(let error): loseChannel("\(error)")
      case .peer(let error): loseChannel("\(error)")
      }
    }
    try serveSocket(stop)
    settle(replies)
  }

  /// The walks that wait for an answer are woken: there will be none.
  func settle(_ replies: [BackendChannel.PendingReply]) {
    for case .miss(let question) in replies { iotlb.answered(question) }
  }

  /// The channel is of no use any more.
  private func loseChannel(_ reason: String) {
    log.notice("back-end channel closed: \(reason)")
    forgetChannel()
    channel.lose()
    do throws(HostError) {
      let timer = try TimerFD()
      try timer.arm(after: Self.channelPatience)
      try poller.add(timer.rawValue, token: Token.channelTimer)
      channelTimer = timer
    } catch {
      giveUpChannel()
    }
  }

  /// The front-end is there, and its channel is not.
  func giveUpChannel() {
    let lost = replaceChannel(nil)
    if !lost.isEmpty {
      log.warning("the front-end has no back-end channel: what waits for \(lost.count) translations fails")
    }
    settle(lost)
  }

  /// SET_BACKEND_REQ_FD. What was asked on the old channel is asked again.
  func adoptChannel(_ file: consuming FileDescriptor) throws(ProtocolError) {
    do throws(HostError) {
      let socket = try UnixSocket(adopting: file)
      let lost = replaceChannel(socket)
      try poller.add(socket.rawValue, token: Token.channel)
      channelStream = MessageStream(socket)
      for case .miss(let question) in lost { iotlb.askAgain(question) }
    } catch {
      settle(replaceChannel(nil))
      throw ProtocolError("SET_BACKEND_REQ_FD", "\(error)")
    }
  }

  /// Returns what waited for the old channel's answers.
  func replaceChannel(_ socket: UnixSocket?) -> [BackendChannel.PendingReply] {
    forgetChannel()
    return channel.replace(socket)
  }

  private func forgetChannel() {
    if let timer = channelTimer { try? poller.remove(timer.rawValue) }
    channelTimer = nil
    if let old = channel.socket { try? poller.remove(old.rawValue) }
    channelStream = nil
    watchesChannelRoom = false
  }
}
