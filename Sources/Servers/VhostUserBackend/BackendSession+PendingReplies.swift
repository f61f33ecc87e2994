internal import HostIO
internal import SocketMessages
internal import VhostUser
internal import VirtioServing

/// A request that has begun and is not done yet: its answer is pending.
enum OwedAnswer {
  /// Rings stop. When they stand still, the rest of the request is done.
  case stops([QueueStop], then: () throws(ProtocolError) -> BackendReply?)
  /// CHECK_DEVICE_STATE waits for the end of the transfer, until the timer's at most.
  case transfer(TimerFD)
}

/// A message that waits until the requests before it are done.
final class DeferredMessage {
  private var message: IncomingMessage<MessageHeader>?

  init(_ message: consuming IncomingMessage<MessageHeader>) { self.message = consume message }

  var request: UInt32? { message?.header.request }
  func take() -> IncomingMessage<MessageHeader>? { message.take() }
}

/// Answers come in the order of their requests, so what follows a request that is not done waits behind it. IOTLB
/// messages go ahead, and are answered at once, while rings do not stop for lack of them: a front-end may wait for the
/// answer to one translation before it sends the next. So does SET_BACKEND_REQ_FD without a request for an answer,
/// because the questions that rings wait for are sent on it. They stay behind a request that changes what they mean.
extension BackendSession {
  /// Messages that are kept for later, at most; then the socket rests.
  static let deferredLimit = 256

  /// Whether the main socket is read.
  var isListening: Bool { owed == nil || deferred.count < Self.deferredLimit }

  /// Whether a message waits for the requests before it.
  func mustWait(_ header: MessageHeader) -> Bool {
    guard let owed else { return false }
    guard case .stops = owed else { return true }
    switch FrontendRequest.Kind(rawValue: header.request) {
    case .iotlb: break
    // Of a device that is reset or replaced the channel may be the next one's, which has other translations.
    case .setBackendRequestDescriptor: if header.needsReply || Self.changesMeaning(owedHeader?.request) { return true }
    default: return true
    }
    return deferred.contains { Self.changesMeaning($0.request) }
  }

  /// Whether translations mean something else, or may not come at all, after a request.
  private static func changesMeaning(_ request: UInt32?) -> Bool {
    switch request.flatMap(FrontendRequest.Kind.init(rawValue:)) {
    case .setFeatures, .setProtocolFeatures, .setOwner, .resetOwner, .setMemoryTable, .addMemoryRegion,
      .removeMemoryRegion,
      .setStatus, .resetDevice, .setBackendRequestDescriptor, nil:
      true
    default: false
    }
  }

  /// Stops rings, and does `then` when they have stopped: at once if none of them runs, otherwise the answer is
  /// pending.
  func stop(
    _ indices: [Int], _ manner: StopManner = .finishing, then: @escaping () throws(ProtocolError) -> BackendReply?
  ) throws(ProtocolError) -> BackendReply? {
    let stops = indices.compactMap { runner.beginStop($0, manner, notifying: stopped) }
    for index in indices where !runner.isRunning(index) { vringErrors.forget(index) }
    if stops.isEmpty { return try then() }
    owed = .stops(stops, then: then)
    return nil
  }

  /// Most stops are over at once, and then nothing has to go ahead of their answers: an IOTLB message that comes behind
  /// waits a moment for that.
  func awaitQuickStops(_ stop: EventFD) throws(Ending) {
    guard case .stops = owed else { return }
    while owed != nil {
      let left = Duration.milliseconds(20) - owedSince.duration(to: .now)
      guard left > .zero, (try? stopped.wait(timeout: left)) == true else { return }
      _ = try? stopped.drain()
      try settleStops(stop)
    }
  }

  /// Checks whether the pending request is done, and goes on with the messages behind it.
  func settleStops(_ stop: EventFD) throws(Ending) {
    guard case .stops(let stops, let then) = owed, stops.allSatisfy(\.isOver), let header = owedHeader else { return }
    owed = nil
    for one in stops { takeNote(of: one) }
    refusal = nil
    let outcome: Result<BackendReply?, ProtocolError>
    do throws(ProtocolError) { outcome = .success(try then()) } catch { outcome = .failure(error) }
    try answer(header, outcome, FileDescriptorList(), stop)
    try serveDeferred(stop)
  }

  /// Serves the messages that waited, until an answer is pending again.
  func serveDeferred(_ stop: EventFD) throws(Ending) {
    while owed == nil, !deferred.isEmpty {
      if let message = deferred.removeFirst().take() { try handle(message, stop) }
    }
  }

  /// A ring stands still; it stays started.
  private func takeNote(of stop: QueueStop) {
    let state = runner.endStop(stop)
    vringErrors.forget(stop.index)
    guard let state else { return }
    vrings[stop.index].state = state
    // A new start may use other mappings (R114), and earlier refusals no longer count.
    if isTranslated { iotlb.flush() }
    announcer.setSuspended(!vrings.indices.contains { runner.isRunning($0) })
  }

  /// The connection has ended. What rings have under way is done; nothing can be asked for any more, so what a
  /// predecessor left stays in the in-flight memory. A reset that was waiting for its rings is a reset still.
  func stopForGood() {
    // Messages after a stop may start the ring anew, and nothing would ever stop it.
    isOver = true
    runner.stopAll(.leavingReplays)
    guard case .stops(_, let then) = owed else { return }
    owed = nil
    _ = try? then()
  }
}
