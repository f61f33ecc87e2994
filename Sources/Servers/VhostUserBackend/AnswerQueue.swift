internal import DMA
internal import HostIO

/// Answers on their way to the front-end, in order.
///
/// What the socket does not take now waits here. A front-end may send many requests before it reads the first answer,
/// as one that answers a burst of misses does: if we waited for it then, it would wait for us.
struct AnswerQueue {
  /// Answers that wait, at most. If a front-end leaves more unread, we wait for it, but not for ever.
  private static let limit = 4096

  private let socket: UnixSocket
  private var waiting = FIFO<[UInt8]>()

  init(_ socket: UnixSocket) { self.socket = socket }

  /// Whether everything has been sent.
  var isEmpty: Bool { waiting.isEmpty }

  /// Sends an answer, or keeps it for ``flush()``. With descriptors, which cannot be kept, or when too many wait, waits
  /// for the front-end.
  ///
  /// - Throws: ETIMEDOUT if that takes longer than ten seconds, ECANCELED if `stop` was signalled meanwhile.
  mutating func send(
    _ answer: [UInt8], _ descriptors: borrowing FileDescriptorList, _ stop: EventFD
  ) throws(HostError) {
    if waiting.isEmpty, try post(answer, descriptors.rawValues) { return }
    guard descriptors.count > 0 || waiting.count >= Self.limit else {
      waiting.append(answer)
      return
    }
    while let earlier = waiting.popFirst() { try socket.send(earlier.span, timeout: .seconds(10), cancel: stop) }
    try socket.send(answer.span, descriptors: descriptors.rawValues, timeout: .seconds(10), cancel: stop)
  }

  /// Sends what the socket takes now.
  mutating func flush() throws(HostError) {
    while let oldest = waiting.first, try post(oldest, []) { _ = waiting.popFirst() }
  }

  /// An answer is far smaller than what a stream socket takes as one piece, so it goes whole or not at all.
  private func post(_ bytes: [UInt8], _ descriptors: [Int32]) throws(HostError) -> Bool {
    try socket.sendNow(bytes.span, descriptors: descriptors) == .sent
  }
}
