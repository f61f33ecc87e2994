internal import CLinux
public import DMA
internal import Glibc

/// What became of asynchronous requests, kept in place: no reaping allocates.
public struct CompletionSet: ~Copyable {
  public static var capacity: Int { 64 }
  fileprivate var tags = InlineArray<64, UInt64>(repeating: 0)
  fileprivate var results = InlineArray<64, Int32>(repeating: 0)
  public fileprivate(set) var count = 0

  public init() {}

  public var indices: Range<Int> { 0..<count }

  /// The tag the request at `index`, in `0..<count`, was given.
  public func tag(_ index: Int) -> UInt64 {
    precondition(index < count)
    // By its span: the array itself would be copied.
    return tags.span[index]
  }

  /// Bytes moved (possibly fewer than asked for) or, for other requests, 0; negative: an error number.
  public func result(_ index: Int) -> Int32 {
    precondition(index < count)
    return results.span[index]
  }
}

/// Asynchronous requests to the host (io_uring). One thread uses it; it may be made on another one before.
///
/// The memory of a request must stay until its completion is reaped: the code that queues one keeps the chain, and its
/// lease, until then. The thread that submits reaps everything before the ring ends; what is left is waited for.
@safe public struct IOUring: ~Copyable {
  /// What became of an attempt to queue a request.
  public enum Queued: Hashable, Sendable {
    case queued
    /// Nothing is free: submit, reap, and try again.
    case full
    /// Never through a ring: too many segments, outside the disk, or a lack of alignment. `BlockFile`'s own calls deal
    /// with it.
    case unsuitable
  }

  /// How the kernel runs a ring, cheapest first.
  public enum Setup: UInt32, CaseIterable, Sendable {
    /// Completions are posted when the one thread that submits asks (Linux 6.1).
    case deferred = 0
    /// They are posted when it enters the kernel; it alone submits (6.0).
    case singleIssuer = 1
    /// The same, for any thread (5.19).
    case cooperative = 2
    /// The thread is interrupted for them.
    case plain = 3
  }

  private let ring: OpaquePointer
  /// What this kernel agreed to.
  public let setup: Setup
  /// Requests that may be under way at once.
  public let capacity: Int
  /// Requests queued or submitted, and not reaped.
  public private(set) var inFlight = 0
  /// Requests queued and not submitted.
  public private(set) var unsubmitted = 0

  /// Makes a ring for about `entries` requests at once, with the cheapest set-up, from `best` on, that this kernel
  /// takes.
  ///
  /// - Throws: ENOSYS, EPERM or ENOMEM where the kernel has none for us: use `BlockFile`'s own calls then.
  public init(entries: Int, atBest best: Setup = .deferred) throws(HostError) {
    var ring: OpaquePointer?
    // Safe: one pointer, written before the call returns.
    try check(unsafe host_ring_create(UInt32(clamping: max(1, entries)), best.rawValue, &ring), "io_uring_setup")
    // Safe: ours until deinit, used by one owner.
    unsafe self.ring = ring!
    // Safe: as above.
    capacity = Int(unsafe host_ring_completion_capacity(ring!))
    // Safe: as above.
    setup = Setup(rawValue: unsafe host_ring_setup(ring!)) ?? .plain
  }

  deinit {
    // The kernel must not write to memory that has another owner by then, so nothing may be left.
    var left = inFlight
    var set = CompletionSet()
    // Safe: here and below, the ring is ours until the last line of this.
    while left > 0, unsafe host_ring_submit_and_wait(ring, 1, -1) >= 0 {
      var tags = set.tags.mutableSpan
      var results = set.results.mutableSpan
      left -= Int(unsafe Self.reap(ring, &tags, &results))
    }
    unsafe host_ring_destroy(ring)
  }

  /// Has `event` signalled when completions are there. Before the first submission.
  ///
  /// Watched with `.edge` the event never needs to be drained.
  public func signal(_ event: EventFD) throws(HostError) {
    // Safe: here and below, the ring is ours.
    try check(unsafe host_ring_register_eventfd(ring, event.rawValue), "io_uring_register eventfd")
  }

  /// Makes requests on `file` cheaper. For one file, before the first submission.
  public func register(_ file: BlockFile) throws(HostError) {
    try check(unsafe host_ring_register_file(ring, file.rawValue), "io_uring_register files")
  }

  /// Queues a read into the segments `range`. `tag` comes back with the completion.
  public mutating func read(
    _ file: BlockFile, into segments: borrowing BufferSegments, _ range: Range<Int>, at position: UInt64, tag: UInt64
  ) -> Queued {
    guard range.count <= BlockFile.maxSegments, !range.isEmpty, position <= UInt64(Int64.max),
      file.isSuitable(segments, range, at: position)
    else { return .unsuitable }
    return unsafe queue { ring in
      unsafe segments.withIOVectors(range) { vectors, count in
        // Safe: the caller keeps the chain until the completion is reaped; see above.
        unsafe host_ring_read(ring, file.rawValue, vectors, UInt32(count), position, tag)
      }
    }
  }

  /// Queues a write of the segments `range`; `durable` completes when it is on stable storage.
  public mutating func write(
    _ file: BlockFile, from segments: borrowing BufferSegments, _ range: Range<Int>, at position: UInt64,
    durable: Bool = false, tag: UInt64
  ) -> Queued {
    let size = file.size
    guard range.count <= BlockFile.maxSegments, !range.isEmpty, !file.isReadOnly, position <= size,
      UInt64(file.byteCount(segments, range)) <= size - position, file.isSuitable(segments, range, at: position)
    else { return .unsuitable }
    return unsafe queue { ring in
      unsafe segments.withIOVectors(range) { vectors, count in
        // Safe: as in read.
        unsafe host_ring_write(ring, file.rawValue, vectors, UInt32(count), position, durable ? 1 : 0, tag)
      }
    }
  }

  /// Queues a flush. It covers what has completed before, not what is under way.
  public mutating func flush(_ file: BlockFile, tag: UInt64) -> Queued {
    // Safe: here and below, queue passes the ring, which is ours.
    unsafe queue { ring in unsafe host_ring_sync(ring, file.rawValue, tag) }
  }

  /// Queues a discard of a range of a regular file. Devices have none here.
  public mutating func discard(_ file: BlockFile, at position: UInt64, count: UInt64, tag: UInt64) -> Queued {
    guard file.kind == .regularFile, mayChange(file, position, count) else { return .unsuitable }
    return unsafe queue { ring in unsafe host_ring_punch(ring, file.rawValue, position, count, tag) }
  }

  /// Queues making a range of a regular file read as zeros while it keeps its space. Devices have none here; completes
  /// with EOPNOTSUPP on a file system that cannot.
  public mutating func writeZeroes(_ file: BlockFile, at position: UInt64, count: UInt64, tag: UInt64) -> Queued {
    guard file.kind == .regularFile, mayChange(file, position, count) else { return .unsuitable }
    // Safe: as in flush.
    return unsafe queue { ring in unsafe host_ring_zero(ring, file.rawValue, position, count, tag) }
  }

  /// Queues waiting for a descriptor.
  public mutating func poll(_ descriptor: Int32, for readiness: Readiness, tag: UInt64) -> Queued {
    unsafe queue { ring in unsafe host_ring_poll(ring, descriptor, readiness.rawValue, tag) }
  }

  /// Queues the end of the request tagged `victim`, which then completes with ECANCELED if it still can.
  public mutating func cancel(_ victim: UInt64, tag: UInt64) -> Queued {
    unsafe queue { ring in unsafe host_ring_cancel(ring, victim, tag) }
  }

  /// Hands what is queued to the kernel.
  public mutating func submit() throws(HostError) {
    if unsubmitted == 0 { return }
    // Safe: the ring is ours.
    let count = try check(unsafe host_ring_submit(ring), "io_uring_enter")
    unsubmitted -= Int(count)
  }

  /// Hands over what is queued and waits until `count` completions are there, or the time is over.
  public mutating func submitAndWait(_ count: Int = 1, timeout: Duration? = nil) throws(HostError) {
    // Safe: the ring is ours.
    try check(
      unsafe host_ring_submit_and_wait(ring, UInt32(clamping: min(count, inFlight)), nanoseconds(timeout)),
      "io_uring_enter")
    unsubmitted = Int(unsafe host_ring_unsubmitted(ring))
  }

  /// Takes completions that are there into `set`, from its start. Never waits. Returns how many; call again after a
  /// full set.
  @discardableResult
  public mutating func reap(into set: inout CompletionSet) -> Int {
    var tags = set.tags.mutableSpan
    var results = set.results.mutableSpan
    // Safe: the ring is ours.
    let count = Int(unsafe Self.reap(ring, &tags, &results))
    set.count = count
    inFlight -= count
    return count
  }

  /// Whether the kernel has something for this thread: completions to be reaped, or deferred work, of which one call
  /// does only part and may yield no completion. Reap until it has not, or look again later: a thread that sleeps now
  /// may not be woken.
  public var hasPendingWork: Bool {
    // Safe: the ring is ours.
    unsafe host_ring_has_work(ring) != 0
  }

  private static func reap(
    _ ring: OpaquePointer, _ tags: inout MutableSpan<UInt64>, _ results: inout MutableSpan<Int32>
  ) -> Int32 {
    let room = UInt32(min(tags.count, results.count))
    // Safe: no more than `room` entries of either are written.
    return unsafe tags.withUnsafeMutableBufferPointer { tags in
      unsafe results.withUnsafeMutableBufferPointer { results in
        unsafe host_ring_reap(ring, tags.baseAddress, results.baseAddress, room)
      }
    }
  }

  private func mayChange(_ file: BlockFile, _ position: UInt64, _ count: UInt64) -> Bool {
    let size = file.size
    return !file.isReadOnly && count > 0 && position <= size && count <= size - position
      && file.isWholeBlocks(position, count)
  }

  private mutating func queue(_ prepare: (OpaquePointer) -> Int32) -> Queued {
    guard inFlight < capacity, unsafe prepare(ring) == 0 else { return .full }
    inFlight += 1
    unsubmitted += 1
    return .queued
  }
}
