public import DMA
import HostIO
public import Virtio

/// A device and its queues in the calling thread: no descriptors, no timers, every round when the test says so.
///
/// It drives a handler the way a queue thread does: hold the mappings, stop kicks, let the handler work, ask whether
/// the driver wants a call, ask for kicks again and look once more.
public final class DeviceHarness {
  public let device: any VirtioDevice
  public let features: Features
  public let space: any DMASpace
  private let handler: any QueueHandler
  private let range: Range<Int>
  private var queues: QueueSet
  private var failed: Set<Int> = []

  /// Used buffer notifications asked for, by queue.
  public private(set) var calls: [Int: Int] = [:]
  /// What ended queues, in order.
  public private(set) var failures: [QueueError] = []
  /// Rounds so far.
  public private(set) var rounds = 0
  /// A kick that makes a handler work for more rounds than this is a bug: it would never sleep.
  public static var maxRounds: Int { 100_000 }

  /// A device whose queues `group` are in one group.
  public init(
    _ device: any VirtioDevice, group: Int = 0, features: Features, in space: any DMASpace
  ) throws(DeviceError) {
    self.device = device
    self.features = features
    self.space = space
    range = device.queueGroups[group]
    handler = try device.makeHandler(for: range, features: features)
    queues = QueueSet(range)
  }

  /// A handler without a device, for queues `0..<count`.
  public init(
    _ handler: sending any QueueHandler, queues count: Int = 1, device: any VirtioDevice, features: Features,
    in space: any DMASpace
  ) {
    self.device = device
    self.features = features
    self.space = space
    range = 0..<count
    self.handler = handler
    queues = QueueSet(0..<count)
  }

  public func start(
    _ index: Int, _ layout: QueueLayout, resumingAt state: QueueState = .initial,
    waking waiter: (any TranslationWaiter)? = nil
  )
    throws(QueueError)
  {
    queues.insert(
      try Virtqueue(index: index, layout: layout, features: features, in: space, waking: waiter, resumingAt: state))
    failed.remove(index)
  }

  /// What the driver's kick of a queue, or the arrival of a translation, sets off.
  public func kick(_ index: Int) {
    guard queues.isRunning(index) else { return }
    run(index, nil)
  }

  /// What readiness of a watched descriptor sets off.
  public func ready(_ token: UInt64) {
    guard let index = range.first(where: { queues.isRunning($0) }) else { return }
    run(index, token)
  }

  /// Whether a queue ended with an error.
  public func hasFailed(_ index: Int) -> Bool { failed.contains(index) }
  /// Whether a queue waits for a translation.
  public func isPending(_ index: Int) -> Bool { queues.isRunning(index) && queues[index].isPending }
  /// What the handler wants watched; readiness goes to ``ready(_:)``.
  public var watched: [WatchedDescriptor] { handler.watched }
  /// Chains popped and not completed, of all queues.
  public var inFlight: Int {
    var sum = 0
    for index in range where queues.isRunning(index) { sum += queues[index].inFlight }
    return sum
  }
  public func state(of index: Int) -> QueueState? { queues.isRunning(index) ? queues[index].state : nil }

  /// Stops a queue as a transport does: what is in flight is finished first.
  @discardableResult public func stop(_ index: Int) -> QueueState? {
    guard queues.isRunning(index) else { return nil }
    queues[index].close(leavingReplays: false)
    for i in range where queues.isRunning(i) && !failed.contains(i) {
      do throws(QueueError) { try queues[i].beginRound() } catch { fail(i, error) }
    }
    handler.stop(index, .finish, in: &queues)
    awaitEnds(of: index)
    for i in range where queues.isRunning(i) {
      if queues[i].takeCall() { calls[i, default: 0] += 1 }
      if i != index { _ = queues[i].armKick() }
      queues[i].endRound()
    }
    return queues.remove(index)?.state
  }

  /// Lets the handler work until it holds no chain of a queue, or nothing happens any more: a device may be wrong.
  private func awaitEnds(of index: Int) {
    let watched = handler.watched
    guard !watched.isEmpty, let poller = try? Poller() else { return }
    for one in watched { try? poller.add(one.descriptor, token: one.token) }
    var ready = ReadySet()
    let end = ContinuousClock.now + .seconds(20)
    while queues[index].inFlight > 0, ContinuousClock.now < end {
      guard (try? poller.wait(into: &ready, timeout: .seconds(2))) ?? 0 > 0 else { return }
      for i in ready.indices {
        do throws(QueueError) { try handler.ready(ready.token(i), in: &queues) } catch { fail(index, error) }
      }
    }
  }

  /// Stops every queue and forgets where they were (§2.4).
  public func reset() {
    for i in range { _ = stop(i) }
    failed = []
  }

  private func run(_ index: Int, _ token: UInt64?) {
    var token = token
    var more = true
    var left = Self.maxRounds
    while more {
      left -= 1
      precondition(left > 0, "a handler never ran out of work")
      rounds += 1
      more = false
      for i in range where queues.isRunning(i) && !failed.contains(i) {
        do throws(QueueError) { try queues[i].beginRound() } catch { fail(i, error) }
      }
      if let ready = token {
        token = nil
        do throws(QueueError) { try handler.ready(ready, in: &queues) } catch {
          for i in range where queues.isRunning(i) { fail(i, error) }
        }
      }
      for i in range where queues.isRunning(i) && !failed.contains(i) && !queues[i].isPending {
        queues[i].disarmKick()
        do throws(QueueError) { try handler.available(i, in: &queues) } catch { fail(i, error) }
      }
      for i in range where queues.isRunning(i) {
        if queues[i].takeCall() { calls[i, default: 0] += 1 }
        if queues[i].armKick() { more = true }
        queues[i].endRound()
      }
    }
  }

  private func fail(_ index: Int, _ error: QueueError) {
    guard !failed.contains(index) else { return }
    failed.insert(index)
    failures.append(error)
    queues[index].retire()
  }
}
