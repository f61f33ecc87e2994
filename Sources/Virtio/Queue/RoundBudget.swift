/// What a round of one queue takes at most: 256 chains, and about a millisecond.
///
/// A driver that makes buffers available as fast as they are taken would otherwise keep the queue's thread from
/// everything else: completions, commands, unmaps, the other queues of its group. The clock is looked at after chains
/// that make 128 descriptors or 8 MiB together, and after each thing that a handler calls slow
/// (``Virtqueue/lookAtClock()``). The first look of a round starts its millisecond: rounds with little to do never
/// look.
struct RoundBudget {
  static var chains: Int { 256 }
  /// Nanoseconds.
  static var time: Int64 { 1_000_000 }
  private static var weightPerLook: Int { 128 }

  private var chainsLeft = 0
  private var weight = 0
  /// Nanoseconds after `origin`; 0 until the round's first look. Not an `Instant`: a field whose size only the standard
  /// library knows would cost every access to a queue.
  private var end: Int64 = 0
  private static let origin = ContinuousClock.now

  mutating func begin() {
    chainsLeft = Self.chains
    weight = 0
    end = 0
  }

  /// Nothing more is to be taken in this round.
  var isSpent: Bool { chainsLeft == 0 }

  /// Whether another chain may be taken. It is counted.
  @inline(__always) mutating func take() -> Bool {
    if chainsLeft == 0 || weight >= Self.weightPerLook && isLate() { return false }
    chainsLeft &-= 1
    return true
  }

  /// A chain of so much was taken.
  @inline(__always) mutating func add(descriptors: Int, bytes: UInt64) {
    weight &+= descriptors &+ Int(truncatingIfNeeded: bytes &>> 16)
  }

  /// The next chain waits for a look at the clock.
  mutating func demandLook() { weight = Self.weightPerLook }

  private mutating func isLate() -> Bool {
    weight = 0
    let (seconds, attoseconds) = Self.origin.duration(to: .now).components
    let now = seconds &* 1_000_000_000 &+ attoseconds / 1_000_000_000
    if end == 0 {
      end = now &+ Self.time
      return false
    }
    if now < end { return false }
    chainsLeft = 0
    return true
  }
}

extension Virtqueue {
  /// To be called by a handler that did something slow, such as input or output that it waited for: the round ends if
  /// it has taken too long by now.
  public mutating func lookAtClock() { round.demandLook() }

  /// Whether this round took as much as a round may, so that others have their turn now.
  public var isSpent: Bool { round.isSpent }
}
