import HostIO
import Logging
import Virtio

/// The thread of one queue group: waits for kicks, lets the handler work, calls the driver. Read ``round(ready:)`` first.
///
/// It owns its queues and its handler; nothing on the way of a request takes a lock. It waits for nobody in this process: a
/// translation that has to be asked for unwinds, and its answer rings the queue's bell.
struct QueueWorker: ~Copyable {
  private let mailbox: WorkerMailbox
  private let poller: Poller
  private let handler: any QueueHandler
  private let events: any DeviceEvents
  private let log: Logger
  private let range: Range<Int>
  private var queues: QueueSet
  private var running: [Running] = []

  private struct Running {
    var index: Int
    var kick: EventFD?
    var call: QueueCaller
    var bell: QueueBell
    var hasFailed = false
  }

  private enum Token {
    static let wake: UInt64 = 0
    /// Kick of queue i: 1 + i. Watched descriptor j of the handler: this + j.
    static let watched: UInt64 = 1 << 32
  }

  init(
    range: Range<Int>, mailbox: WorkerMailbox, handler: sending any QueueHandler, events: any DeviceEvents, log: Logger
  ) throws(HostError) {
    let poller = try Poller()
    try poller.add(mailbox.wake, token: Token.wake)
    for (j, watched) in handler.watched.enumerated() {
      try poller.add(watched.descriptor, token: Token.watched + UInt64(j), for: watched.reportsChanges ? [.readable, .edge] : .readable)
    }
    self.poller = poller
    self.range = range
    self.mailbox = mailbox
    self.handler = handler
    self.events = events
    self.log = log
    queues = QueueSet(range)
  }

  /// Works until the last queue is stopped.
  mutating func run() {
    var ready = ReadySet()
    var hasBegun = false
    while !hasBegun || !running.isEmpty {
      do throws(HostError) {
        _ = try poller.wait(into: &ready)
      } catch {
        log.error("queue thread: \(error)")
        return
      }
      var works = false
      for i in ready.indices {
        let token = ready.token(i)
        if token == Token.wake {
          _ = try? mailbox.wake.drain()
          // Bells are looked at before commands run: a command may end the queue.
          for queue in running where queue.bell.take() { works = true }
          for command in mailbox.take() {
            if case .start = command { hasBegun = true }
            obey(command)
            works = true
          }
        } else if token >= Token.watched {
          let j = Int(token - Token.watched)
          let watched = handler.watched
          if j < watched.count, !running.isEmpty { round(ready: watched[j].token) }
        } else {
          works = true
          clear(kickOf: Int(token - 1))
        }
      }
      if works, !running.isEmpty { round(ready: nil) }
    }
  }

  /// One round, or as many as there is work for: hold the mappings, stop kicks, let the handler work, call if the driver wants
  /// it, ask for kicks again and look once more.
  private mutating func round(ready token: UInt64?) {
    var token = token
    var more: Bool
    repeat {
      more = false
      for i in running.indices where !running[i].hasFailed {
        do throws(QueueError) { try queues[running[i].index].beginRound() } catch { fail(i, error) }
      }
      if let ready = token {
        token = nil
        do throws(QueueError) { try handler.ready(ready, in: &queues) } catch { failAll(error) }
      }
      for i in running.indices where !running[i].hasFailed {
        let index = running[i].index
        if queues[index].isPending { continue }
        queues[index].disarmKick()
        do throws(QueueError) { try handler.available(index, in: &queues) } catch { fail(i, error) }
      }
      for i in running.indices {
        let index = running[i].index
        if queues[index].takeCall() { running[i].call.signal() }
        if queues[index].armKick() { more = true }
        queues[index].endRound()
      }
      if more, mailbox.isWaiting {
        // Commands come between rounds; the bell brings us back to what is left.
        for queue in running { queue.bell.translationArrived() }
        return
      }
    } while more
  }

  private mutating func fail(_ i: Int, _ error: QueueError) {
    guard !running[i].hasFailed else { return }
    running[i].hasFailed = true
    queues[running[i].index].retire()
    log.warning("queue stopped until the driver resets the device", metadata: ["queue": "\(running[i].index)", "error": "\(error)"])
    events.needsReset(running[i].index, error)
  }

  private mutating func failAll(_ error: QueueError) {
    for i in running.indices { fail(i, error) }
  }

  private mutating func clear(kickOf index: Int) {
    guard let i = running.firstIndex(where: { $0.index == index }), let kick = running[i].kick else { return }
    do throws(HostError) {
      _ = try kick.drain()
    } catch {
      // A peer that passed something that cannot be read must not keep us awake.
      log.warning("kick descriptor dropped", metadata: ["queue": "\(index)", "error": "\(error)"])
      try? poller.remove(kick.rawValue)
      running[i].kick = nil
    }
  }

  // MARK: Commands

  private mutating func obey(_ command: WorkerMailbox.Command) {
    switch command {
    case .start(let start, let call, let bell, let statistics, let answer):
      answer.give(begin(start, call, bell, statistics))
    case .stop(let index, let handingOver, let answer):
      answer.give(end(index, handingOver))
    case .kick(let index, let kick, let answer):
      replaceKick(index, kick)
      answer.give(())
    }
  }

  private mutating func begin(_ start: QueueStart, _ call: QueueCall, _ bell: QueueBell, _ statistics: QueueStatistics) -> QueueError? {
    let inflight = start.inflight?()
    do throws(QueueError) {
      queues.insert(
        try Virtqueue(
          index: start.index, layout: start.layout, features: start.features, in: start.space, waking: bell,
          resumingAt: start.state, recorder: inflight, statistics: statistics))
    } catch {
      return error
    }
    running.append(Running(index: start.index, call: QueueCaller(call), bell: bell))
    replaceKick(start.index, start.kick)
    return nil
  }

  private mutating func end(_ index: Int, _ handingOver: Bool) -> QueueState? {
    guard let i = running.firstIndex(where: { $0.index == index }) else { return nil }
    // Without anything in flight no ring is touched: its mappings may be gone already, and looking would be a fault that
    // the guest sees (R063, R095).
    var isBusy = false
    for queue in running where queues[queue.index].inFlight > 0 { isBusy = true }
    if isBusy {
      for queue in running where !queue.hasFailed {
        do throws(QueueError) { try queues[queue.index].beginRound() } catch { failAll(error) }
      }
      if handingOver, queues[index].canLeave { handler.handOver(index, in: &queues) } else { handler.finish(&queues) }
      for i in running.indices {
        let other = running[i].index
        if queues[other].takeCall() { running[i].call.signal() }
        // Another queue of the group goes on: it wants kicks, and what came meanwhile is looked at after this command.
        if other != index { _ = queues[other].armKick() }
        queues[other].endRound()
      }
    }
    if let kick = running[i].kick { try? poller.remove(kick.rawValue) }
    running.remove(at: i)
    return queues.remove(index)?.state
  }

  private mutating func replaceKick(_ index: Int, _ kick: EventFD?) {
    guard let i = running.firstIndex(where: { $0.index == index }) else { return }
    if let old = running[i].kick { try? poller.remove(old.rawValue) }
    running[i].kick = kick
    guard let kick else { return }
    do throws(HostError) {
      try poller.add(kick, token: 1 + UInt64(index))
    } catch {
      log.warning("kick descriptor not usable", metadata: ["queue": "\(index)", "error": "\(error)"])
      running[i].kick = nil
    }
  }
}
