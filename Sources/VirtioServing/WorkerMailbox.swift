import HostIO
import Synchronization
import Virtio

/// What a control thread tells a worker, and the answers.
final class WorkerMailbox: Sendable {
  enum Command: Sendable {
    case start(QueueStart, QueueCall, QueueBell, QueueStatistics, Answer<QueueError?>)
    case stop(Int, StopManner, Answer<QueueState?>)
    case kick(Int, EventFD?, Answer<Void>)
  }

  let wake: EventFD
  /// Signalled by answers that the control thread waits for. It waits for one at a time.
  let answered: EventFD
  private let commands = Mutex<[Command]>([])
  private let waiting = Atomic<Bool>(false)

  init() throws(HostError) {
    wake = try EventFD()
    answered = try EventFD()
  }

  func post(_ command: Command) {
    commands.withLock { $0.append(command) }
    waiting.store(true, ordering: .releasing)
    wake.signal()
  }

  /// Whether commands wait: one load, asked once a round.
  var isWaiting: Bool { waiting.load(ordering: .acquiring) }

  func take() -> [Command] {
    waiting.store(false, ordering: .releasing)
    return commands.withLock { commands in
      let all = commands
      commands.removeAll()
      return all
    }
  }
}

/// A place for one value that another thread waits for, or is told of.
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
