import HostIO
import Synchronization
import Virtio

/// Commands from control threads to a worker, and the answers.
final class WorkerMailbox: Sendable {
  enum Command: Sendable {
    case start(QueueStart, QueueCall, QueueBell, QueueStatistics, Answer<QueueError?>)
    case stop(Int, StopManner, Answer<QueueState?>)
    case kick(Int, EventFD?, Answer<Void>)
  }

  let wake: EventFD
  /// Signalled by answers that the control thread waits for. It waits for one at a time.
  let answered: EventFD
  private struct State {
    var commands: [Command] = []
    var isClosed = false
  }
  private let state = Mutex(State())
  private let waiting = Atomic<Bool>(false)

  init() throws(HostError) {
    wake = try EventFD()
    answered = try EventFD()
  }

  /// Leaves a command for the worker. One that has ended answers at once.
  func post(_ command: Command) {
    let isClosed = state.withLock { state in
      if !state.isClosed { state.commands.append(command) }
      return state.isClosed
    }
    if isClosed { return command.refuse() }
    waiting.store(true, ordering: .releasing)
    wake.signal()
  }

  /// The worker has ended: what is left here is answered, and so are later commands. A queue that is stopping can get
  /// another stop before its end was noticed.
  func close() {
    let left = state.withLock { state in
      state.isClosed = true
      defer { state.commands = [] }
      return state.commands
    }
    for command in left { command.refuse() }
  }

  /// Whether commands wait: one load, asked once a round.
  var isWaiting: Bool { waiting.load(ordering: .acquiring) }

  func take() -> [Command] {
    waiting.store(false, ordering: .releasing)
    return state.withLock { state in
      defer { state.commands.removeAll() }
      return state.commands
    }
  }
}

extension WorkerMailbox.Command {
  /// Answers that there is no such queue any more.
  fileprivate func refuse() {
    switch self {
    case .start(_, _, _, _, let answer): answer.give(.device("the queue's thread has ended"))
    case .stop(_, _, let answer): answer.give(nil)
    case .kick(_, _, let answer): answer.give(())
    }
  }
}

/// A place for one value that another thread waits for, or is notified of.
final class Answer<Value: Sendable>: Sendable {
  private let place = Mutex<Value?>(nil)
  private let event: EventFD

  /// - Parameter event: signalled when the value is there. Other answers may share it.
  init(notifying event: EventFD) { self.event = event }

  func give(_ value: Value) {
    place.withLock { $0 = value }
    event.signal()
  }

  /// The value, if it is there.
  var value: Value? { place.withLock { $0 } }

  /// Waits for the value. Of the answers that share an event one at a time may be waited for.
  func wait() throws(HostError) -> Value {
    while true {
      if let value { return value }
      _ = try event.wait()
      _ = try event.drain()
    }
  }
}
