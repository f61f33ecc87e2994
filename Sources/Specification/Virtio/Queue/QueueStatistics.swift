import Synchronization

/// What a queue has done; any thread may read it. The queue counts for itself and stores the sums once a round.
public final class QueueStatistics: Sendable {
  /// The sums of one queue.
  public struct Counts: Hashable, Sendable {
    /// Chains popped.
    public var requests: UInt64 = 0
    /// Chains given back.
    public var completions: UInt64 = 0
    /// Bytes of device-readable memory in completed chains.
    public var readableBytes: UInt64 = 0
    /// Bytes the device said it wrote.
    public var writtenBytes: UInt64 = 0
    /// Chains, or ring areas, that could not be reached.
    public var faults: UInt64 = 0
    /// Times a chain was parked until a translation arrived.
    public var waits: UInt64 = 0
    /// Used buffer notifications asked for.
    public var calls: UInt64 = 0
    public init() {}
  }

  private let requests = Atomic<UInt64>(0)
  private let completions = Atomic<UInt64>(0)
  private let readableBytes = Atomic<UInt64>(0)
  private let writtenBytes = Atomic<UInt64>(0)
  private let faults = Atomic<UInt64>(0)
  private let waits = Atomic<UInt64>(0)
  private let calls = Atomic<UInt64>(0)

  public init() {}

  /// As of the end of the last round; each sum is right by itself.
  public var counts: Counts {
    var counts = Counts()
    counts.requests = requests.load(ordering: .relaxed)
    counts.completions = completions.load(ordering: .relaxed)
    counts.readableBytes = readableBytes.load(ordering: .relaxed)
    counts.writtenBytes = writtenBytes.load(ordering: .relaxed)
    counts.faults = faults.load(ordering: .relaxed)
    counts.waits = waits.load(ordering: .relaxed)
    counts.calls = calls.load(ordering: .relaxed)
    return counts
  }

  /// Called by the one queue that counts here.
  func store(_ counts: borrowing Counts) {
    requests.store(counts.requests, ordering: .relaxed)
    completions.store(counts.completions, ordering: .relaxed)
    readableBytes.store(counts.readableBytes, ordering: .relaxed)
    writtenBytes.store(counts.writtenBytes, ordering: .relaxed)
    faults.store(counts.faults, ordering: .relaxed)
    waits.store(counts.waits, ordering: .relaxed)
    calls.store(counts.calls, ordering: .relaxed)
  }
}
