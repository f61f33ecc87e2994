internal import HostIO
internal import Logging
internal import Synchronization

/// The listening socket while front-ends come and go: looks at the first bytes of each connection, answers questions about
/// the back-end at once, and passes front-ends on, in order of arrival.
///
/// A thread of its own, so that a question is answered while a front-end is served.
final class Doorway: Sendable {
  private struct Waiting: Sendable {
    var sockets: [UnixSocket] = []
    var served = false
  }
  private let listener: UnixListener
  private let log: Logger
  private let stopping: EventFD
  private let answer: @Sendable (ExplainRequest.Form) -> String
  private let waiting = Mutex(Waiting())
  private let arrived: EventFD
  /// Connections that have said nothing yet, at most: the oldest goes.
  private static let silentLimit = 64

  init(
    _ listener: UnixListener, stopping: EventFD, log: Logger, answer: @escaping @Sendable (ExplainRequest.Form) -> String
  ) throws(HostError) {
    self.listener = listener
    self.stopping = stopping
    self.log = log
    self.answer = answer
    arrived = try EventFD()
  }

  /// The next front-end; nil when told to stop. Blocks.
  func next() throws(HostError) -> UnixSocket? {
    waiting.withLock { $0.served = false }
    let poller = try Poller()
    try poller.add(stopping, token: 0)
    try poller.add(arrived, token: 1)
    var ready = ReadySet()
    while true {
      let socket: UnixSocket? = waiting.withLock { waiting in
        guard !waiting.sockets.isEmpty else { return nil }
        waiting.served = true
        return waiting.sockets.removeFirst()
      }
      if let socket { return socket }
      try poller.wait(into: &ready)
      for i in ready.indices {
        if ready.token(i) == 0 { return nil }
        _ = try? arrived.drain()
      }
    }
  }

  /// Lets people in until told to stop. Blocks; for a thread of its own.
  func run() throws(HostError) {
    let poller = try Poller()
    try poller.add(stopping, token: 0)
    try poller.add(listener.rawValue, token: 1)
    var silent: [UInt64: UnixSocket] = [:]
    var number: UInt64 = 2
    var ready = ReadySet()
    while true {
      try poller.wait(into: &ready)
      for i in ready.indices {
        switch ready.token(i) {
        case 0: return
        case 1:
          guard let socket = try accept() else { continue }
          if silent.count >= Self.silentLimit, let oldest = silent.keys.min(), let old = silent.removeValue(forKey: oldest) {
            try? poller.remove(old.rawValue)
          }
          // Edge-triggered: bytes that are looked at and left would keep us awake otherwise.
          try poller.add(socket.rawValue, token: number, for: [.readable, .edge])
          silent[number] = socket
          number += 1
        case let token:
          guard let socket = silent[token], look(at: socket) else { continue }
          try? poller.remove(socket.rawValue)
          silent[token] = nil
        }
      }
    }
  }

  private func accept() throws(HostError) -> UnixSocket? {
    do throws(HostError) {
      return try listener.accept()
    } catch {
      // Too many open files, say: whoever came has to come again, and those inside stay.
      log.warning("a connection could not be accepted: \(error)")
      return nil
    }
  }

  /// Reads a connection's first bytes without taking them. True: nothing more is to be done here.
  private func look(at socket: UnixSocket) -> Bool {
    let here: [UInt8]?
    do throws(HostError) { here = try socket.peek(ExplainRequest.byteCount) } catch { return true }
    guard let bytes = here else { return false }
    // Closed before a word.
    if bytes.isEmpty { return true }
    let header = Array(ExplainRequest.question(.words).prefix(MessageHeader.byteCount))
    let isQuestion = bytes.prefix(header.count).elementsEqual(header.prefix(bytes.count))
    guard isQuestion else {
      pass(on: socket)
      return true
    }
    guard bytes.count == ExplainRequest.byteCount else { return false }
    if let form = ExplainRequest.form(of: bytes) {
      // Taken, because closing a socket with bytes unread resets it, and the answer would be lost.
      var question = [UInt8](repeating: 0, count: bytes.count)
      var span = question.mutableSpan
      var none = FileDescriptorList()
      _ = try? socket.receive(into: &span, descriptors: &none)
      let text = Array(((form == .words ? "#" : "") + answer(form)).utf8)
      try? socket.send(text.span, timeout: .seconds(1), cancel: stopping)
    }
    return true
  }

  private func pass(on socket: UnixSocket) {
    let mustWait = waiting.withLock { waiting in
      waiting.sockets.append(socket)
      return waiting.served || waiting.sockets.count > 1
    }
    if mustWait { log.notice("another front-end connected and waits until the present one has gone") }
    arrived.signal()
  }
}
