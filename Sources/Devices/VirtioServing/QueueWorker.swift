import HostIO
import Logging
import Virtio

/// The thread of one queue group: waits for kicks, lets the handler work, calls the driver. Read ``round(ready:)``
/// first.
///
/// It owns its queues and its handler; nothing on the way of a request takes a lock. It waits for no other thread of
/// this process: a translation that has to be asked for unwinds, and its answer rings the queue's bell; a stop goes on
/// over as many rounds as it needs (`QueueWorker+Commands.swift`).
///
/// After requests it stays awake for some microseconds, if that has been worth it, and asks for kicks only when it goes
/// to sleep (`BusyPolling`).
///
/// Nothing waits for a driver to pause. A round takes 256 chains or a millisecond of each queue at most
/// (`RoundBudget`), and after four rounds, or one that was used up, the handler's descriptors, commands and kicks have
/// their turn.
struct QueueWorker: ~Copyable {
  let mailbox: WorkerMailbox
  let poller: Poller
  let handler: any QueueHandler
  /// How long a stop may take before it gives up what it can.
  let patience: Duration
  private let events: any DeviceEvents
  let log: Logger
  var queues: QueueSet
  var running: [Running] = []

  struct Running {
    var index: Int
    var kick: EventFD?
    var call: QueueCaller
    var bell: QueueBell
    /// The driver can take the ring away, so it is touched only after a kick: a read at the wrong time would be a fault
    /// that the guest sees.
    var isTranslated: Bool
    var hasFailed = false
    /// Counted up to 2.
    var kicks: Int64 = 0
    var stopping: Stopping?
  }

  enum Token {
    static let wake: UInt64 = 0
    /// Kick of queue i: 1 + i. Watched descriptor j of the handler: this + j.
    static let watched: UInt64 = 1 << 32
  }

  /// Rounds in a row for a driver that goes on, before other work is checked.
  private static var roundsPerTurn: Int { 4 }

  init(
    range: Range<Int>, mailbox: WorkerMailbox, handler: sending any QueueHandler, patience: Duration,
    events: any DeviceEvents, log: Logger
  ) throws(HostError) {
    let poller = try Poller()
    try poller.add(mailbox.wake, token: Token.wake)
    for (j, watched) in handler.watched.enumerated() {
      try poller.add(
        watched.descriptor, token: Token.watched + UInt64(j),
        for: watched.reportsChanges ? [.readable, .edge] : .readable)
    }
    self.poller = poller
    self.mailbox = mailbox
    self.handler = handler
    self.patience = patience
    self.events = events
    self.log = log
    queues = QueueSet(range)
  }

  /// Works until the last queue is stopped.
  mutating func run() {
    var ready = ReadySet()
    var hasBegun = false
    var isBusy = false
    var busyPolling = BusyPolling()
    while !hasBegun || !running.isEmpty {
      do throws(HostError) {
        let isAwake = isBusy || busyPolling.isAwake
        // The thread that was woken by a call may be waiting for this very processor.
        if isAwake, !isBusy { WorkerThread.yield() }
        _ = try poller.wait(into: &ready, timeout: isAwake ? .zero : timeLeft)
      } catch {
        log.error("a queue thread ends: \(error)")
        for queue in running { for answer in queue.stopping?.answers ?? [] { answer.give(nil) } }
        return
      }
      for i in ready.indices {
        let token = ready.token(i)
        if token == Token.wake {
          _ = try? mailbox.wake.drain()
          // Bells are checked before commands run: a command may end the queue.
          for queue in running where queue.bell.take() { isBusy = true }
          for command in mailbox.take() {
            if case .start = command { hasBegun = true }
            obey(command)
            isBusy = true
          }
        } else if token >= Token.watched {
          let j = Int(token - Token.watched)
          let watched = handler.watched
          if j < watched.count, !running.isEmpty, turn(ready: watched[j].token, arming: !busyPolling.isAwake) {
            isBusy = true
          }
        } else {
          isBusy = true
          clear(kickOf: Int(token - 1))
        }
      }
      if !running.isEmpty, isBusy || busyPolling.isAwake {
        let before = taken
        let staysAwake = busyPolling.begin(isAllowed: mayStayAwake)
        isBusy = turn(ready: nil, arming: !staysAwake)
        busyPolling.end(foundWork: taken != before)
      } else if running.isEmpty {
        busyPolling = BusyPolling()
      }
      if settleStops() { isBusy = true }
    }
  }

  /// How many chains its queues have taken; it overflows.
  private var taken: UInt32 {
    var sum: UInt32 = 0
    for queue in running { sum &+= queues[queue.index].taken }
    return sum
  }

  /// A stop must not be held up, and a second kick must be reported (``DeviceEvents/secondKick(_:)``).
  private var mayStayAwake: Bool {
    for queue in running {
      if queue.isTranslated || queue.kick == nil || queue.kicks < 2 || queue.stopping != nil || queue.hasFailed {
        return false
      }
    }
    return true
  }

  /// Rounds, as many as there is work for and the bound allows. True if there is more to do: come back without
  /// sleeping.
  private mutating func turn(ready token: UInt64?, arming: Bool) -> Bool {
    var more = round(ready: token, arming)
    var left = Self.roundsPerTurn - 1
    while more, left > 0, !mailbox.isWaiting {
      for queue in running where queues[queue.index].isSpent { return true }
      more = round(ready: nil, arming)
      left -= 1
    }
    return more
  }

  /// One round: hold the mappings, stop kicks, let the handler work, call if the driver wants it, ask for kicks again
  /// unless another round comes without them, and look once more. True if there is something to be had.
  private mutating func round(ready token: UInt64?, _ arming: Bool) -> Bool {
    var more = false
    for i in running.indices where !running[i].hasFailed {
      do throws(QueueError) { try queues[running[i].index].beginRound() } catch { fail(i, error) }
    }
    for i in running.indices {
      if let step = running[i].takeStep() { handler.stop(running[i].index, step, in: &queues) }
    }
    if let token {
      do throws(QueueError) { try handler.ready(token, in: &queues) } catch { failAll(error) }
    }
    for i in running.indices where !running[i].hasFailed {
      let index = running[i].index
      if queues[index].isPending || queues[index].takesNothing { continue }
      queues[index].disarmKick()
      do throws(QueueError) { try handler.available(index, in: &queues) } catch { fail(i, error) }
    }
    for i in running.indices {
      let index = running[i].index
      if queues[index].takeCall() { running[i].call.signal() }
      if arming ? queues[index].armKick() : queues[index].hasMore() { more = true }
      queues[index].endRound()
    }
    return more
  }

  private mutating func fail(_ i: Int, _ error: QueueError) {
    guard !running[i].hasFailed else { return }
    running[i].hasFailed = true
    queues[running[i].index].retire()
    log.warning("queue \(running[i].index) stopped until the driver resets the device: \(error)")
    events.needsReset(running[i].index, error)
  }

  private mutating func failAll(_ error: QueueError) {
    for i in running.indices { fail(i, error) }
  }

  private mutating func clear(kickOf index: Int) {
    guard let i = running.firstIndex(where: { $0.index == index }), let kick = running[i].kick else { return }
    do throws(HostError) {
      let kicks = try kick.drain()
      guard running[i].kicks < 2 else { return }
      running[i].kicks += min(kicks, 2)
      if running[i].kicks >= 2 { events.secondKick(index) }
    } catch {
      // A peer that passed something that cannot be read must not keep us awake.
      log.warning("the kick descriptor of queue \(index) is dropped: \(error)")
      try? poller.remove(kick.rawValue)
      running[i].kick = nil
    }
  }
}
