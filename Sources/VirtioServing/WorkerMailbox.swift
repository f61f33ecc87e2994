import HostIO
import Synchronization
import Virtio

/// What a control thread tells a worker, and the answers.
final class WorkerMailbox: Sendable {
  enum Command: Sendable {
    case start(QueueStart, QueueCall, QueueBell, QueueStatistics, Answer<QueueError?>)
    case stop(Int, handingOver: Bool, Answer<QueueState?>)
    case kick(Int, EventFD?, Answer<Void>)
  }

  let wake: EventFD
  private let commands = Mutex<[Command]>([])
  private let waiting = Atomic<Bool>(false)

  init() throws(HostError) { wake = try EventFD() }

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

/// A place for one value that another thread waits for.
final class Answer<Value: Sendable>: Sendable {
  private let value = Mutex<Value?>(nil)
  private let arrived: EventFD

  init() throws(HostError) { arrived = try EventFD() }

  func give(_ value: Value) {
    self.value.withLock { $0 = value }
    arrived.signal()
  }

  /// Waits for the value.
  func wait() throws(HostError) -> Value {
    while true {
      if let value = value.withLock({ $0 }) { return value }
      _ = try arrived.wait()
    }
  }
}
