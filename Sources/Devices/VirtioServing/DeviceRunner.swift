internal import DMA
public import HostIO
public import Logging
import Synchronization
public import Virtio

/// Runs a device's queues: a thread for each group that has a queue running, started with the first and ended with the
/// last.
///
/// Its methods wait for queue threads, never the other way round. Call them from one control thread at a time. A thread
/// that has to go on meanwhile, because a stop may need it, begins a stop with ``beginStop(_:_:notifying:)`` and is
/// notified of its end.
public final class DeviceRunner: Sendable {
  public let device: any VirtioDevice
  private let events: any DeviceEvents
  private let log: Logger
  private let name: String
  private let patience: Duration
  private let calls: [QueueCall]
  private let statistics: [QueueStatistics]

  private struct Worker: Sendable {
    var thread: WorkerThread
    var mailbox: WorkerMailbox
    var features: Features
    var bells: [Int: QueueBell] = [:]
  }
  /// By the group's first queue.
  private let workers = Mutex<[Int: Worker]>([:])

  /// - Parameters:
  ///   - name: name of the queue threads, to which a number is added; the kernel shows 12 bytes at most.
  ///   - patience: how long a stop may take before it gives up what it can: see ``QueueStop``.
  public init(
    _ device: any VirtioDevice, name: String = "queue", patience: Duration = .seconds(10), events: any DeviceEvents,
    log: Logger
  ) {
    self.device = device
    self.events = events
    self.log = log
    self.name = name
    self.patience = patience
    calls = device.maxQueueSizes.map { _ in QueueCall() }
    statistics = device.maxQueueSizes.map { _ in QueueStatistics() }
  }

  /// What each queue has done since the runner was made.
  public var counts: [QueueStatistics.Counts] { statistics.map(\.counts) }

  /// Processor time of the queue threads that run.
  public var cpuTime: Duration { workers.withLock { $0.values.reduce(.zero) { $0 + $1.thread.cpuTime } } }

  /// Where used buffer notifications of a queue go from now on: nil drops them. Something used meanwhile is not
  /// forgotten: a new target is called once.
  public func setCall(_ index: Int, _ action: (@Sendable () -> Void)?) {
    guard calls.indices.contains(index) else { return }
    calls[index].set(action)
    if action != nil, isRunning(index) { calls[index].signal() }
  }

  /// As ``setCall(_:_:)`` with an eventfd.
  public func setCall(_ index: Int, _ event: EventFD?) {
    guard let event else { return setCall(index, nil as (@Sendable () -> Void)?) }
    setCall(index) { event.signal() }
  }

  /// Replaces the kick of a running queue; the queue is checked once, so that no kick is lost.
  public func setKick(_ index: Int, _ kick: EventFD?) throws(HostError) {
    guard let worker = worker(of: index) else { return }
    let answer = Answer<Void>(notifying: worker.mailbox.answered)
    worker.mailbox.post(.kick(index, kick, answer))
    try answer.wait()
  }

  /// Kicks a running queue without its eventfd.
  public func kick(_ index: Int) {
    worker(of: index)?.bells[index]?.wake()
  }

  /// Whether queue `index` was started and not stopped.
  public func isRunning(_ index: Int) -> Bool { worker(of: index)?.bells[index] != nil }

  /// Starts a queue that does not run. Features are those of all running queues of its group.
  public func start(_ start: QueueStart) throws(DeviceError) {
    let group = try checkedGroup(of: start)
    let worker = try worker(for: group, features: start.features)
    let bell = QueueBell(worker.mailbox.wake)
    if let error = try hand(start, to: worker, bell: bell) {
      reap(group)
      throw DeviceError("\(error)")
    }
    workers.withLock { $0[group.lowerBound]?.bells[start.index] = bell }
    // For what the driver made available before we listened.
    bell.wake()
  }

  /// The group of a queue that there is, that does not run, and that is not larger than it may be.
  private func checkedGroup(of start: QueueStart) throws(DeviceError) -> Range<Int> {
    let index = start.index
    guard let group = device.queueGroups.first(where: { $0.contains(index) }), index < device.maxQueueSizes.count else {
      throw DeviceError("there is no queue \(index)")
    }
    guard start.layout.size <= device.maxQueueSizes[index] else {
      throw DeviceError(
        "queue \(index) has at most \(device.maxQueueSizes[index]) descriptors, not \(start.layout.size)")
    }
    guard !isRunning(index) else { throw DeviceError("queue \(index) runs already") }
    return group
  }

  /// The group's worker, made if none of its queues runs.
  private func worker(for group: Range<Int>, features: Features) throws(DeviceError) -> Worker {
    try workers.withLock { workers throws(DeviceError) in
      if let worker = workers[group.lowerBound] { return worker }
      let worker = try makeWorker(group, features)
      workers[group.lowerBound] = worker
      return worker
    }
  }

  /// Has a worker take a queue, and returns why it does not.
  private func hand(_ start: QueueStart, to worker: Worker, bell: QueueBell) throws(DeviceError) -> QueueError? {
    let answer = Answer<QueueError?>(notifying: worker.mailbox.answered)
    worker.mailbox.post(.start(start, calls[start.index], bell, statistics[start.index], answer))
    return try rethrowing(answer.wait(), saying: DeviceError.init)
  }

  /// Tells a queue to stop, and returns at once; nil if it does not run. It counts as running until ``endStop(_:)``. A
  /// second stop, in a manner that leaves more, is allowed.
  ///
  /// - Parameter event: signalled when the stop is over.
  public func beginStop(_ index: Int, _ manner: StopManner = .finishing, notifying event: EventFD) -> QueueStop? {
    guard let worker = worker(of: index), worker.bells[index] != nil else { return nil }
    let stop = QueueStop(index: index, answer: Answer(notifying: event))
    worker.mailbox.post(.stop(index, manner, stop.answer))
    return stop
  }

  /// Takes note that a stop is over, and returns where the queue was. Waits if it is not over yet.
  public func endStop(_ stop: QueueStop) -> QueueState? {
    do throws(HostError) {
      let state = try stop.answer.wait()
      guard let group = device.queueGroups.first(where: { $0.contains(stop.index) }) else { return nil }
      workers.withLock { _ = $0[group.lowerBound]?.bells.removeValue(forKey: stop.index) }
      reap(group)
      return state
    } catch {
      log.error("queue \(stop.index) could not be stopped: \(error)")
      return nil
    }
  }

  /// Stops a queue, waits until it stands still, and returns where it was; nil if it did not run.
  public func stop(_ index: Int, _ manner: StopManner = .finishing) -> QueueState? {
    guard let event = worker(of: index)?.mailbox.answered else { return nil }
    return beginStop(index, manner, notifying: event).flatMap(endStop)
  }

  /// Stops every queue, waits until all stand still, and drops their positions. Afterwards no queue touches memory.
  public func stopAll(_ manner: StopManner = .finishing) {
    // Every stop is begun before the first is waited for. Groups have a mailbox each, whose queues share its event:
    // every value is there or comes with a signal that no other thread takes.
    let stops = device.maxQueueSizes.indices.compactMap { index in
      worker(of: index).flatMap { beginStop(index, manner, notifying: $0.mailbox.answered) }
    }
    for stop in stops { _ = endStop(stop) }
  }

  /// As ``stopAll(_:)``, and resets the device itself (§2.4.1).
  public func reset() {
    stopAll()
    device.reset()
  }

  private func worker(of index: Int) -> Worker? {
    guard let group = device.queueGroups.first(where: { $0.contains(index) }) else { return nil }
    return workers.withLock { $0[group.lowerBound] }
  }

  private func makeWorker(_ group: Range<Int>, _ features: Features) throws(DeviceError) -> Worker {
    let mailbox = try rethrowing(WorkerMailbox(), saying: DeviceError.init)
    let begun = Answer<DeviceError?>(notifying: mailbox.answered)
    let (device, patience, events, log) = (device, patience, events, log)
    let name = "\(name)\(group.lowerBound)"
    let thread = try rethrowing(
      WorkerThread(name: name) {
        // The handler is made on its thread: an io_uring belongs to the thread that made it.
        do {
          var worker = try QueueWorker(
            range: group, mailbox: mailbox, handler: try device.makeHandler(for: group, features: features),
            patience: patience, events: events, log: log)
          begun.give(nil)
          worker.run()
          mailbox.close()
        } catch {
          begun.give((error as? DeviceError) ?? DeviceError("\(error)"))
        }
      }, saying: DeviceError.init)
    if let error = try rethrowing(begun.wait(), saying: DeviceError.init) {
      thread.join()
      throw error
    }
    return Worker(thread: thread, mailbox: mailbox, features: features)
  }

  /// Joins a group's thread when its last queue has stopped.
  private func reap(_ group: Range<Int>) {
    let ended: Worker? = workers.withLock { workers in
      guard let worker = workers[group.lowerBound], worker.bells.isEmpty else { return nil }
      workers[group.lowerBound] = nil
      return worker
    }
    ended?.thread.join()
  }
}
