internal import DMA
import HostIO
import Logging
import Virtio

// The commands of control threads to a worker: start a queue, stop it, use another kick.
//
//     running ──stop──▶ stopping: rounds go on, nothing new is taken ──drained──▶ gone, answered
//                           └──10 s──▶ what can be called off is, replays stay recorded ──drained──▶ gone, answered
extension QueueWorker {
  /// A queue that stops.
  struct Stopping {
    /// The answer that is due, with the position.
    var answers: [Answer<QueueState?>]
    /// The step that the handler has not been told yet.
    var step: StopStep?
    /// When patience ends; nil once it has.
    var end: ContinuousClock.Instant?
  }

  mutating func obey(_ command: WorkerMailbox.Command) {
    switch command {
    case .start(let start, let call, let bell, let statistics, let answer):
      answer.give(begin(start, call, bell, statistics))
    case .stop(let index, let manner, let answer):
      beginStop(index, manner, answer)
    case .kick(let index, let kick, let answer):
      replaceKick(index, kick)
      answer.give(())
    }
  }

  private mutating func begin(
    _ start: QueueStart, _ call: QueueCall, _ bell: QueueBell, _ statistics: QueueStatistics
  ) -> QueueError? {
    let inflight = start.inflight?()
    do throws(QueueError) {
      queues.insert(
        try Virtqueue(
          index: start.index, layout: start.layout, features: start.features, in: start.space, waking: bell,
          resumingAt: start.state, recorder: inflight, statistics: statistics))
    } catch {
      return error
    }
    running.append(
      Running(index: start.index, call: QueueCaller(call), bell: bell, isTranslated: start.space.isTranslated))
    replaceKick(start.index, start.kick)
    return nil
  }

  private mutating func replaceKick(_ index: Int, _ kick: EventFD?) {
    guard let i = running.firstIndex(where: { $0.index == index }) else { return }
    if let old = running[i].kick { try? poller.remove(old.rawValue) }
    running[i].kick = kick
    guard let kick else { return }
    do throws(HostError) {
      try poller.add(kick, token: 1 + UInt64(index))
    } catch {
      log.warning("the kick descriptor of queue \(index) is of no use: \(error)")
      running[i].kick = nil
    }
  }

  // MARK: Stopping

  private mutating func beginStop(_ index: Int, _ manner: StopManner, _ answer: Answer<QueueState?>) {
    guard let i = running.firstIndex(where: { $0.index == index }) else { return answer.give(nil) }
    let answers = (running[i].stopping?.answers ?? []) + [answer]
    replaceKick(index, nil)
    let canLeave = queues[index].canLeave
    queues[index].close(leavingReplays: canLeave && manner != .finishing)
    running[i].stopping = Stopping(
      answers: answers, step: manner == .handingOver && canLeave ? .handOver : .finish,
      end: ContinuousClock.now + patience)
    // Without anything in flight no ring is touched: its mappings may be gone already, and looking would be a fault
    // that the guest sees (R063, R095).
    if queues[index].isDrained { end(i) }
  }

  /// How long the thread may sleep before a stop takes too long; nil: as long as nothing happens.
  var timeLeft: Duration? {
    var first: ContinuousClock.Instant?
    for queue in running {
      if let end = queue.stopping?.end { first = min(end, first ?? end) }
    }
    return first.map { max(.zero, $0 - ContinuousClock.now) }
  }

  /// Ends the stops that are over. True if one takes too long, and the handler has to be told.
  mutating func settleStops() -> Bool {
    var isLate = false
    for i in running.indices.reversed() {
      guard let stopping = running[i].stopping else { continue }
      let index = running[i].index
      if let end = stopping.end, end <= ContinuousClock.now {
        log.warning("queue \(index) takes too long to stop: what can be called off is")
        running[i].stopping?.end = nil
        running[i].stopping?.step = .giveUp
        queues[index].close(leavingReplays: true)
        isLate = true
      }
      if queues[index].isDrained { self.end(i) }
    }
    return isLate
  }

  private mutating func end(_ i: Int) {
    let queue = running.remove(at: i)
    let state = queues.remove(queue.index)?.state
    for answer in queue.stopping?.answers ?? [] { answer.give(state) }
  }
}

extension QueueWorker.Running {
  /// The next step of the queue's stop for the handler, once.
  mutating func takeStep() -> StopStep? {
    guard stopping?.step != nil else { return nil }
    return stopping?.step.take()
  }
}
