internal import CLinux
internal import Glibc
import Synchronization

/// A thread of our own, with a name, to wait in system calls on: Swift's concurrency pool must not block.
///
/// Every signal is blocked on it, but for those a thread's own mistakes raise, such as SIGBUS. What its body captures
/// is sent along and can no longer be reached from outside.
public final class WorkerThread: Sendable {
  /// Where the thread leaves what others ask about it.
  private final class Record: Sendable {
    let clock = Atomic<Int32>(0)
    let started = Atomic<Bool>(false)
    let finished = Atomic<Bool>(false)
    let finalTime = Atomic<Int64>(0)
  }

  private let handle: UInt64
  private let record: Record
  private let joined = Mutex(false)
  /// The thread's name; the kernel shows the first 15 bytes.
  public let name: String

  /// Lets others that wait for the calling thread's processor have it first.
  public static func yield() { sched_yield() }

  /// Starts a thread that runs `body`.
  public init(name: String, _ body: sending @escaping () -> Void) throws(HostError) {
    let parcel = Parcel(body)
    let record = Record()
    let job = Job {
      var clock: Int32 = 0
      // Safe: one integer, written before the call returns.
      if unsafe host_thread_clock(&clock) == 0 {
        record.clock.store(clock, ordering: .relaxed)
        record.started.store(true, ordering: .releasing)
      }
      parcel.take()()
      record.finalTime.store(max(0, host_clock_read(clock)), ordering: .relaxed)
      record.finished.store(true, ordering: .releasing)
    }
    var handle: UInt64 = 0
    // Safe: the retained job is released by the thread that receives it, or below if there is none.
    let context = unsafe Unmanaged.passRetained(job)
    let result = unsafe host_thread_start(
      &handle, name, { unsafe Unmanaged<Job>.fromOpaque($0!).takeRetainedValue().run() }, context.toOpaque())
    if result != 0 { unsafe context.release() }
    try check(result, "pthread_create", name)
    self.handle = handle
    self.record = record
    self.name = name
  }

  /// Waits until the thread has ended. Later calls return at once; a call from the thread itself is a mistake that
  /// traps.
  public func join() {
    precondition(host_thread_is_current(handle) == 0, "a thread cannot wait for its own end")
    joined.withLock { joined in
      if !joined { _ = host_thread_join(handle) }
      joined = true
    }
  }

  /// Whether the body has returned.
  public var isFinished: Bool { record.finished.load(ordering: .acquiring) }

  /// Processor time the thread has used so far, or did use.
  public var cpuTime: Duration {
    if !isFinished, record.started.load(ordering: .acquiring) {
      let time = host_clock_read(record.clock.load(ordering: .relaxed))
      // The clock of a thread that ended meanwhile is gone, or belongs to a new thread.
      if time >= 0, !isFinished { return .nanoseconds(time) }
    }
    return .nanoseconds(isFinished ? record.finalTime.load(ordering: .relaxed) : 0)
  }

  deinit {
    if joined.withLock({ !$0 }) { _ = host_thread_detach(handle) }
  }
}

/// Carries a body that may be moved, not shared, to its thread: put in once, taken out once.
// Safe: `init` takes the body away from the starting thread (`sending`), and only the started thread calls `take`.
@safe private final class Parcel: @unchecked Sendable {
  private var body: (() -> Void)?

  init(_ body: sending @escaping () -> Void) { self.body = body }

  func take() -> () -> Void {
    guard let taken = body.take() else { preconditionFailure("a parcel is opened once") }
    return taken
  }
}

/// What crosses C: the thread's whole work.
private final class Job: Sendable {
  let run: @Sendable () -> Void
  init(_ run: @escaping @Sendable () -> Void) { self.run = run }
}
