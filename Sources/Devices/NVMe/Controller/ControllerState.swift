import HostIO
import Synchronization

/// What processors' threads and the controller's thread share: registers, doorbells, and what the latter is to do.
///
/// Any thread may use it. Registers change at once; what follows happens on the controller's thread, and shows in CSTS.
final class ControllerState: Sendable {
  struct Registers {
    var configuration = NVMeConfiguration(rawValue: 0)
    var status: NVMeControllerStatus = []
    var adminQueueAttributes: UInt32 = 0
    var adminSubmissionQueue: UInt64 = 0
    var adminCompletionQueue: UInt64 = 0
  }
  /// What the controller's thread has to do, in this order.
  struct Orders {
    var stop = false
    /// Resets asked for so far.
    var reset: UInt64 = 0
    var enable = false
    var shutdown = false
  }
  private struct State {
    var registers = Registers()
    var orders = Orders()
    /// Resets done so far.
    var resets: UInt64 = 0
    /// Whether the thread has ended.
    var hasEnded = false
  }
  private let state = Mutex(State())
  private let hasOrders = Atomic<Bool>(false)
  /// Whether something was written since the controller's thread looked last, and whether it sleeps.
  private let hasNews = Atomic<Bool>(false)
  private let isAsleep = Atomic<Bool>(false)
  /// Writes to doorbells of no queue, and of values that no queue has.
  private let strayDoorbells = Atomic<Bool>(false)
  private let strayValues = Atomic<Bool>(false)
  private let hasStrays = Atomic<Bool>(false)
  /// Namespaces whose size changed.
  private let resized = Mutex<Set<UInt32>>([])
  private let hasResized = Atomic<Bool>(false)
  private let wake: EventFD
  private let acknowledged: EventFD
  let submissionTails: [Doorbell]
  let completionHeads: [Doorbell]
  /// CAP.
  let capabilities: UInt64
  static let version: UInt32 = 0x0001_0400

  init(_ options: NVMeOptions) throws(HostError) {
    wake = try EventFD()
    acknowledged = try EventFD()
    let count = options.ioQueues + 1
    submissionTails = (0..<count).map { _ in Doorbell() }
    completionHeads = (0..<count).map { _ in Doorbell() }
    // MQES; CQR: queues are contiguous; TO: 20 s, for a reset waits for the host's disk; CSS: the NVM command set;
    // MPSMAX: 64 KiB.
    capabilities = UInt64(options.queueSize - 1) | 1 << 16 | 40 << 24 | 1 << 37 | 4 << 52
  }

  // MARK: Registers, from processors' threads

  var registers: Registers { state.withLock { $0.registers } }

  func write(configuration value: UInt32) {
    change { state in
      let old = state.registers.configuration
      let new = NVMeConfiguration(rawValue: value & NVMeConfiguration.mask)
      state.registers.configuration = new
      if old.isEnabled, !new.isEnabled {
        state.orders.reset += 1
        state.orders.enable = false
        state.orders.shutdown = false
        return
      }
      if !old.isEnabled, new.isEnabled { state.orders.enable = true }
      if new.shutdown != 0, new.shutdown != old.shutdown {
        state.registers.status.remove(.shutdown)
        state.registers.status.insert(.shutdownOccurring)
        state.orders.shutdown = true
      }
    }
  }

  /// A change of the admin queue registers, which have no effect before the controller is enabled.
  func write(adminQueues body: (inout Registers) -> Void) {
    state.withLock { state in
      // While it is enabled they are not to be written (3.1.8): what it works with is what they say.
      if !state.registers.configuration.isEnabled { body(&state.registers) }
    }
  }

  func ringSubmission(_ queue: Int, _ value: UInt32) { ring(submissionTails, queue, value) }
  func ringCompletion(_ queue: Int, _ value: UInt32) { ring(completionHeads, queue, value) }

  private func ring(_ doorbells: [Doorbell], _ queue: Int, _ value: UInt32) {
    let outcome = doorbells.indices.contains(queue) ? doorbells[queue].ring(value) : .noQueue
    switch outcome {
    case .taken: break
    case .noQueue: strayDoorbells.store(true, ordering: .relaxed)
    case .badValue: strayValues.store(true, ordering: .relaxed)
    }
    if outcome != .taken { hasStrays.store(true, ordering: .releasing) }
    rouse()
  }

  /// A namespace's size changed.
  func noticeResize(of namespace: UInt32) {
    _ = resized.withLock { $0.insert(namespace) }
    hasResized.store(true, ordering: .releasing)
    rouse()
  }

  /// The controller's thread is to look.
  private func rouse() {
    hasNews.store(true, ordering: .relaxed)
    // Before the look whether it sleeps: it looks for news after it said so.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    if isAsleep.load(ordering: .relaxed) { wake.signal() }
  }

  /// Everything as after power-on; returns when the controller's thread no longer uses memory.
  func powerOn() {
    let ticket = change { state in
      state.registers = Registers()
      state.orders.reset += 1
      state.orders.enable = false
      state.orders.shutdown = false
      return state.orders.reset
    }
    while state.withLock({ !$0.hasEnded && $0.resets < ticket }) {
      // Several may wait, and one takes the signal: the time-out is for the others.
      _ = try? acknowledged.wait(timeout: .milliseconds(20))
      _ = try? acknowledged.drain()
    }
  }

  func stop() { change { $0.orders.stop = true } }

  private func change<R>(_ body: (inout State) -> R) -> R {
    let result = state.withLock { state in
      let result = body(&state)
      hasOrders.store(true, ordering: .releasing)
      return result
    }
    rouse()
    return result
  }

  // MARK: On the controller's thread

  /// Signalled for what the ring has done, too.
  var wakeDescriptor: EventFD { wake }

  /// What was written before this will be seen by the looks that follow.
  func beginLooking() {
    if hasNews.load(ordering: .relaxed) { _ = hasNews.exchange(false, ordering: .sequentiallyConsistent) }
  }

  /// Waits until there is something to look at.
  func sleep() throws(HostError) {
    isAsleep.store(true, ordering: .relaxed)
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    defer { isAsleep.store(false, ordering: .relaxed) }
    if hasNews.load(ordering: .relaxed) { return }
    _ = try wake.wait()
    _ = try wake.drain()
  }

  /// Whether to look at the orders before the next command.
  var isInterrupted: Bool { hasOrders.load(ordering: .acquiring) }

  /// What to do; nil: nothing.
  func takeOrders() -> (orders: Orders, registers: Registers, mustReset: Bool)? {
    guard hasOrders.exchange(false, ordering: .acquiringAndReleasing) else { return nil }
    return state.withLock { state in
      let orders = state.orders
      state.orders.enable = false
      state.orders.shutdown = false
      return (orders, state.registers, orders.reset > state.resets)
    }
  }

  /// Nil: there are none.
  func takeStrays() -> (doorbells: Bool, values: Bool)? {
    guard hasStrays.load(ordering: .relaxed), hasStrays.exchange(false, ordering: .acquiring) else { return nil }
    return (strayDoorbells.exchange(false, ordering: .acquiring), strayValues.exchange(false, ordering: .acquiring))
  }

  /// Namespaces whose size changed; nil: none.
  func takeResizes() -> Set<UInt32>? {
    guard hasResized.load(ordering: .relaxed), hasResized.exchange(false, ordering: .acquiring) else { return nil }
    return resized.withLock { resized in
      defer { resized = [] }
      return resized
    }
  }

  /// The reset is done, and shows unless another one was asked for.
  func didReset(_ ticket: UInt64) {
    state.withLock { state in
      state.resets = ticket
      if state.orders.reset == ticket { state.registers.status.subtract([.ready, .fatal, .shutdown]) }
    }
    acknowledged.signal()
  }

  /// Shows a state, unless a reset is about to end it.
  func show(_ status: NVMeControllerStatus) {
    state.withLock { state in
      guard state.orders.reset == state.resets else { return }
      if status == .shutdownComplete { state.registers.status.remove(.shutdown) }
      state.registers.status.formUnion(status)
    }
  }

  func didEnd() {
    state.withLock { $0.hasEnded = true }
    acknowledged.signal()
  }
}
