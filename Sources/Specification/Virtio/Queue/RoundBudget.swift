/// What a round of one queue takes at most: 256 chains, and about a millisecond.
///
/// A driver that makes buffers available as fast as they are taken would otherwise keep the queue's thread from all
/// other work: completions, commands, unmaps, the other queues of its group. The clock is read after chains that make
/// 128 descriptors or 8 MiB together, and after each operation that a handler calls slow (``Virtqueue/lookAtClock()``).
/// The first reading of a round starts its millisecond; rounds with little to do never read it.
struct RoundBudget {
  static var chains: Int { 256 }
  /// Nanoseconds.
  static var time: Int64 { 1_000_000 }
  private static var weightPerLook: Int { 128 }

  /// What chains may weigh until the next look, at the clock and at how many they were: each weighs 1 or more.
  private var left = 0
  /// How many chains the queue had popped when the round began.
  private var first: UInt32 = 0
  private var isOver = false
  /// Nanoseconds after `origin`; 0 until the round's first look. Not an `Instant`: a field whose size only the standard
  /// library knows would cost every access to a queue.
  private var end: Int64 = 0
  private static let origin = ContinuousClock.now

  /// - Parameter popped: how many chains the queue has popped, here and below.
  mutating func begin(_ popped: UInt32) {
    first = popped
    left = Self.weightPerLook
    isOver = false
    end = 0
  }

  /// Nothing more is to be taken in this round.
  func isSpent(_ popped: UInt32) -> Bool { isOver || taken(popped) >= Self.chains }

  /// Whether another chain may be taken.
  @inline(__always) mutating func mayTake(_ popped: UInt32) -> Bool { left > 0 || look(popped) }

  /// A chain of so much was taken.
  @inline(__always) mutating func add(descriptors: Int, bytes: UInt64) {
    left &-= descriptors &+ Int(truncatingIfNeeded: bytes &>> 16)
  }

  /// The next chain waits for a look at the clock.
  mutating func demandLook() { left = 0 }

  /// Fewer than none after a chain of an earlier round was put back.
  private func taken(_ popped: UInt32) -> Int { Int(Int32(bitPattern: popped &- first)) }

  @inline(never) private mutating func look(_ popped: UInt32) -> Bool {
    isOver = isSpent(popped) || isLate()
    left = isOver ? 0 : min(Self.weightPerLook, Self.chains - taken(popped))
    return !isOver
  }

  private mutating func isLate() -> Bool {
    let (seconds, attoseconds) = Self.origin.duration(to: .now).components
    let now = seconds &* 1_000_000_000 &+ attoseconds / 1_000_000_000
    if end == 0 { end = now &+ Self.time }
    return now >= end
  }
}

extension Virtqueue {
  /// To be called by a handler that did something slow, such as input or output that it waited for: the round ends if
  /// it has taken too long by now.
  public mutating func lookAtClock() { round.demandLook() }

  /// Whether this round took as much as a round may, so that others have their turn now.
  public var isSpent: Bool { round.isSpent(popped) }
}
