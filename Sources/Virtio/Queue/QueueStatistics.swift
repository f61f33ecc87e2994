import Synchronization

/// What a queue has done, for whoever asks, from any thread. The queue counts for itself and stores the sums once a round.
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

  private let shared = Mutex(Counts())

  public init() {}

  /// As of the end of the last round.
  public var counts: Counts { shared.withLock { $0 } }

  func store(_ counts: Counts) { shared.withLock { $0 = counts } }
}
