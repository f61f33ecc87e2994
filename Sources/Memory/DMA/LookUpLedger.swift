import Synchronization

/// Look-ups in a space, counted by each queue for itself and summed for statistics. Any thread may use it; a queue
/// takes no lock to count.
public final class LookUpStatistics: Sendable {
  /// Look-ups that a queue answered itself, and those that it took to its space.
  public typealias Sum = (hits: UInt64, misses: UInt64)

  private struct State {
    var ended: Sum = (0, 0)
    var open: [LookUpCounters] = []
  }
  private let state = Mutex(State())

  /// An empty one.
  public init() {}

  /// All look-ups so far, as of the end of each queue's last round.
  public var sum: Sum {
    state.withLock { state in
      state.open.reduce(state.ended) { ($0.hits &+ $1.sum.hits, $0.misses &+ $1.sum.misses) }
    }
  }

  /// Counters for a queue, at 0, which count here until ``close(_:)``.
  func open() -> LookUpCounters {
    let counters = LookUpCounters()
    state.withLock { $0.open.append(counters) }
    return counters
  }

  /// The queue has ended: its sums stay.
  func close(_ counters: LookUpCounters) {
    state.withLock { state in
      state.open.removeAll { $0 === counters }
      let sum = counters.sum
      state.ended = (state.ended.hits &+ sum.hits, state.ended.misses &+ sum.misses)
    }
  }
}

/// One queue's look-ups. Its thread stores, any thread reads; each figure is right by itself.
final class LookUpCounters: Sendable {
  private let hits = Atomic<UInt64>(0)
  private let misses = Atomic<UInt64>(0)

  func store(hits: UInt64, misses: UInt64) {
    self.hits.store(hits, ordering: .relaxed)
    self.misses.store(misses, ordering: .relaxed)
  }

  var sum: LookUpStatistics.Sum { (hits.load(ordering: .relaxed), misses.load(ordering: .relaxed)) }
}
