internal import DMA
internal import Examination
internal import HostIO
internal import VhostUser

/// How a back-end took a message.
enum Reaction: Hashable {
  /// It answered, with this payload.
  case answered([UInt8])
  case closed
  /// It went on as if nothing had come.
  case silent

  /// An acknowledgement's number.
  var code: UInt64? {
    guard case .answered(let bytes) = self, bytes.count == 8 else { return nil }
    return bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }
}

/// A connection to send anything over, broken messages most of all.
final class RawConnection {
  private enum Incoming {
    case message(MessageHeader, [UInt8])
    case closed
  }
  let socket: UnixSocket
  let patience: Duration
  /// REPLY_ACK is negotiated.
  var acknowledges = false

  init(_ socket: UnixSocket, patience: Duration) {
    self.socket = socket
    self.patience = patience
  }

  /// Sends bytes as they are. False if the peer takes no more.
  func send(_ bytes: [UInt8], descriptors: [Int32] = []) throws(Finding) -> Bool {
    do throws(HostError) {
      try socket.send(bytes.span, descriptors: descriptors, timeout: patience)
      return true
    } catch {
      if error.errno == .brokenPipe || error.errno == .connectionReset { return false }
      throw error.errno == .timedOut ? .wedged("it reads no messages any more") : .notChecked("\(error)")
    }
  }

  private func receive() throws(Finding) -> Incoming {
    guard let head = try take(MessageHeader.byteCount) else { return .closed }
    let header = try rethrowing(
      MessageHeader(decoding: head), saying: { Finding.broken("it sent a malformed answer: \($0)") })
    guard header.size > 0 else { return .message(header, []) }
    guard let payload = try take(Int(header.size)) else { return .closed }
    return .message(header, payload)
  }

  /// So many bytes, or nil if the connection ends first.
  private func take(_ count: Int) throws(Finding) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    var files = FileDescriptorList()
    var span = bytes.mutableSpan
    do throws(HostError) {
      guard try socket.receiveAll(into: &span, descriptors: &files, timeout: patience) else { return nil }
    } catch {
      if error.errno == .connectionReset || error.errno == .brokenPipe { return nil }
      throw error.errno == .timedOut
        ? .wedged("it answers nothing any more, not even GET_FEATURES") : .notChecked("\(error)")
    }
    return bytes
  }

  /// Sends GET_FEATURES and drops what comes until its answer. False if the connection ends first.
  func isAnswered() throws(Finding) -> Bool {
    guard try send(FrontendRequest.getFeatures.encoded()) else { return false }
    return try awaitFeatures() == nil
  }

  /// Nil when the answer to GET_FEATURES has come.
  private func awaitFeatures() throws(Finding) -> Reaction? {
    for _ in 0..<64 {
      switch try receive() {
      case .closed: return .closed
      case .message(let header, _): if header.request == FrontendRequest.Kind.getFeatures.rawValue { return nil }
      }
    }
    throw .broken("it sends answers that were not asked for")
  }

  /// Sends a request that must work.
  func tell(_ request: FrontendRequest, descriptors: [Int32] = []) throws(Finding) {
    let reaction = try provoke(request.kind.rawValue, request.payload, descriptors: descriptors)
    if reaction == .closed { throw .broken("the connection ended at \(request.name)") }
    if let code = reaction.code, code != 0, !request.hasAnswer {
      throw .broken("the back-end refused \(request.name) with \(code)")
    }
  }

  /// Sends a message and observes the reaction: GET_FEATURES follows at once, so that silence is known without waiting.
  func provoke(
    _ request: UInt32, _ payload: [UInt8], flags: UInt32? = nil, size: UInt32? = nil, descriptors: [Int32] = []
  ) throws(Finding) -> Reaction {
    let flags = flags ?? (MessageHeader.version | (acknowledges ? MessageHeader.needReply : 0))
    let header = MessageHeader(request: request, flags: flags, size: size ?? UInt32(payload.count))
    guard try send(header.encoded + payload, descriptors: descriptors),
      try send(FrontendRequest.getFeatures.encoded())
    else { return .closed }
    switch try receive() {
    case .closed: return .closed
    case .message(let answer, let payload):
      // Of two answers to GET_FEATURES the first one may be the message's own.
      if answer.request != request {
        return answer.request == FrontendRequest.Kind.getFeatures.rawValue ? .silent : .answered(payload)
      }
      if let end = try awaitFeatures() { return end }
      return .answered(payload)
    }
  }

  /// What a back-end did about a message that it has to refuse; throws if it did not.
  func mustRefuse(_ reaction: Reaction, _ what: String) throws(Finding) -> String {
    switch reaction {
    case .closed: return "it closed the connection"
    case .silent:
      if !acknowledges { return "it ignored \(what)" }
      throw .broken("\(what) asked for an acknowledgement (NEED_REPLY) and got none")
    case .answered:
      guard let code = reaction.code else {
        throw .broken("\(what) was answered with something that is no acknowledgement")
      }
      if code == 0 { throw .broken("\(what) was acknowledged with 0, which says that it was carried out") }
      return "it was refused with \(code)"
    }
  }
}
