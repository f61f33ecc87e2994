package import HostIO
package import Logging
internal import Synchronization

/// The listening socket of a server while its peers come and go: reads the first bytes of each connection, answers
/// `explain` at once, and passes peers on, in order of arrival.
///
/// A thread of its own, so that a question is answered while a front-end is served. It holds a bounded number of
/// connections, and rests when one cannot be let in: those that knock meanwhile wait in the listener's own queue.
package final class ConnectionAcceptor: Sendable {
  private struct Visitor: Sendable {
    var number: UInt64
    var socket: UnixSocket
  }
  private struct Waiting: Sendable {
    var visitors: [Visitor] = []
    var served = false
    /// Whether it was logged that a peer waits.
    var isTold = false
  }
  private enum Token {
    static let stop: UInt64 = 0
    static let listener: UInt64 = 1
    static let crowded: UInt64 = 2
    /// Connections are numbered from here on.
    static let first: UInt64 = 3
  }
  private let listener: UnixListener
  private let peer: String
  private let log: Logger
  private let stopping: EventFD
  private let answer: @Sendable (ExplainRequest.Form) -> String?
  private let waiting = Mutex(Waiting())
  private let arrived: EventFD
  private let crowded: EventFD
  /// What the acceptor's own thread waits for, and what ``next()`` does. Made at the start: later there may be no
  /// descriptors.
  private let poller: Poller
  private let queue: Poller
  /// Connections that have said nothing yet, at most: the oldest goes.
  static let silentLimit = 64
  /// Peers that wait for the present one to go, at most: the newest is sent away.
  package static let waitingLimit = 64
  /// How long no connection is accepted after one could not be.
  package static let rest = Duration.milliseconds(100)

  /// - Parameters:
  ///   - peer: what the log calls those that connect: `front-end`, say.
  ///   - stopping: signalled to end it all.
  ///   - answer: the answer to `sluice explain`, on the acceptor's thread.
  package init(
    _ listener: UnixListener, peer: String, stopping: EventFD, log: Logger,
    answer: @escaping @Sendable (ExplainRequest.Form) -> String?
  ) throws(HostError) {
    self.listener = listener
    self.peer = peer
    self.stopping = stopping
    self.log = log
    self.answer = answer
    arrived = try EventFD()
    crowded = try EventFD()
    poller = try Poller()
    queue = try Poller()
    try poller.add(stopping, token: Token.stop)
    try poller.add(listener.rawValue, token: Token.listener)
    try poller.add(crowded, token: Token.crowded)
    try queue.add(stopping, token: 0)
    try queue.add(arrived, token: 1)
  }

  /// Accepts on a thread of its own while `body` runs, which asks for one peer after the other; a stop follows.
  package func open(_ name: String, _ body: () throws(HostError) -> Void) throws(HostError) {
    let log = log
    let door = try WorkerThread(name: "\(name) door") { [self] in
      do { try run() } catch { log.error("no new connections are accepted: \(error)") }
    }
    defer {
      stopping.signal()
      door.join()
    }
    try body()
  }

  /// The next peer; nil after a stop. Blocks.
  package func next() throws(HostError) -> UnixSocket? {
    waiting.withLock {
      $0.served = false
      $0.isTold = false
    }
    var ready = ReadySet()
    while true {
      let visitor: Visitor? = waiting.withLock { waiting in
        guard !waiting.visitors.isEmpty else { return nil }
        waiting.served = true
        return waiting.visitors.removeFirst()
      }
      if let visitor {
        try? poller.remove(visitor.socket.rawValue)
        return visitor.socket
      }
      try queue.wait(into: &ready)
      for i in ready.indices {
        if ready.token(i) == 0 { return nil }
        _ = try? arrived.drain()
      }
    }
  }

  /// Sends away the connection that has said nothing for longest, if there is one: a peer needs its descriptor more.
  /// From any thread.
  package func makeRoom() { crowded.signal() }

  /// Accepts connections until it is stopped. Blocks; for a thread of its own.
  private func run() throws(HostError) {
    var silent: [UInt64: UnixSocket] = [:]
    var number = Token.first
    var isResting = false
    var told: ContinuousClock.Instant?
    var ready = ReadySet()
    while true {
      try poller.wait(into: &ready, timeout: isResting ? Self.rest : nil)
      var knocks = isResting && ready.count == 0
      for i in ready.indices {
        switch ready.token(i) {
        case Token.stop: return
        case Token.listener: knocks = true
        case Token.crowded:
          _ = try? crowded.drain()
          dismissOldest(of: &silent)
        case let token:
          guard let socket = silent[token] else {
            if !ready.readiness(i).isDisjoint(with: [.hangup, .failed]) { forget(token) }
            continue
          }
          guard look(at: socket, token) else { continue }
          silent[token] = nil
        }
      }
      guard knocks else { continue }
      let isOpen = letIn(&silent, &number, &told)
      guard isOpen == isResting else { continue }
      isResting = !isOpen
      // Level-triggered: a knock that cannot be answered would keep us awake.
      try? poller.modify(listener.rawValue, token: Token.listener, for: isOpen ? .readable : [])
    }
  }

  /// Takes one connection, if there is one. False: that did not work, and is not going to at once.
  private func letIn(
    _ silent: inout [UInt64: UnixSocket], _ number: inout UInt64, _ told: inout ContinuousClock.Instant?
  ) -> Bool {
    do throws(HostError) {
      guard let socket = try listener.accept() else { return true }
      if silent.count >= Self.silentLimit { dismissOldest(of: &silent) }
      // Edge-triggered: bytes that are only peeked at would keep us awake otherwise.
      try poller.add(socket.rawValue, token: number, for: [.readable, .edge])
      silent[number] = socket
      number += 1
      return true
    } catch {
      // One line for a shortage that comes and goes with every descriptor.
      let now = ContinuousClock.now
      if told.map({ now - $0 > .seconds(60) }) ?? true {
        log.warning("connections have to wait until this host can take them: \(error)")
      }
      told = now
      if error.isShortage { dismissOldest(of: &silent) }
      return false
    }
  }

  private func dismissOldest(of silent: inout [UInt64: UnixSocket]) {
    guard let oldest = silent.keys.min(), let socket = silent.removeValue(forKey: oldest) else { return }
    try? poller.remove(socket.rawValue)
  }

  /// A peer that waited has gone.
  private func forget(_ number: UInt64) {
    let gone: Visitor? = waiting.withLock { waiting in
      waiting.visitors.firstIndex { $0.number == number }.map { waiting.visitors.remove(at: $0) }
    }
    if let gone { try? poller.remove(gone.socket.rawValue) }
  }

  /// Reads a connection's first bytes without taking them. True: nothing more is to be done here.
  private func look(at socket: UnixSocket, _ number: UInt64) -> Bool {
    let here: [UInt8]?
    do throws(HostError) { here = try socket.peek(ExplainRequest.byteCount) } catch { return leave(socket) }
    guard let bytes = here else { return false }
    // Closed before a word.
    if bytes.isEmpty { return leave(socket) }
    let header = ExplainRequest.header
    let isQuestion = bytes.prefix(header.count).elementsEqual(header.prefix(bytes.count))
    guard isQuestion else {
      pass(on: Visitor(number: number, socket: socket))
      return true
    }
    guard bytes.count == ExplainRequest.byteCount else { return false }
    if let form = ExplainRequest.form(of: bytes) {
      // Taken, because closing a socket with bytes unread resets it, and the answer would be lost.
      var question = [UInt8](repeating: 0, count: bytes.count)
      var span = question.mutableSpan
      var none = FileDescriptorList()
      _ = try? socket.receive(into: &span, descriptors: &none)
      if let answer = answer(form) {
        let text = Array(((form == .words ? "#" : "") + answer).utf8)
        try? socket.send(text.span, timeout: .seconds(1), cancel: stopping)
      }
    }
    return leave(socket)
  }

  private func leave(_ socket: UnixSocket) -> Bool {
    try? poller.remove(socket.rawValue)
    return true
  }

  private func pass(on visitor: Visitor) {
    // From now on only its end is of interest: it must not keep a place for which others wait.
    try? poller.modify(visitor.socket.rawValue, token: visitor.number, for: .edge)
    let (isTaken, isNews) = waiting.withLock { waiting in
      guard waiting.visitors.count < Self.waitingLimit else { return (false, false) }
      waiting.visitors.append(visitor)
      let mustWait = waiting.served || waiting.visitors.count > 1
      defer { if mustWait { waiting.isTold = true } }
      return (true, mustWait && !waiting.isTold)
    }
    guard isTaken else {
      try? poller.remove(visitor.socket.rawValue)
      log.warning("a \(peer) was sent away: \(Self.waitingLimit) others wait already")
      return
    }
    if isNews { log.notice("another \(peer) connected and waits until the present one has gone") }
    arrived.signal()
  }
}
