import DMA

/// How much a queue's chains in flight may hold: a driver decides how many pieces its buffers have, and how many chains it makes
/// available at once, and must not decide how much memory that costs us.
///
/// Counted in segments, as the chains' storage has room for them. Chains of the usual kind, whose number the ring bounds, are not
/// counted. One chain is always taken, however long: it then has the budget to itself.
struct HoldBudget {
  /// Segments that the longer chains of a queue hold together, at most.
  static let limit = 1 << 15
  /// A chain with room for no more than this costs what every chain costs.
  static let free = 64

  private(set) var segments = 0
  /// A chain was not taken for lack of room. It is looked at again when another one has ended.
  private(set) var isWaitedFor = false

  /// What a chain counts for: its segments and, where translations serve one chain only, what it named.
  static func weight(capacity: Int, notes: Int) -> Int { capacity + notes > free ? capacity + notes : 0 }

  var isSpent: Bool { segments >= Self.limit }

  func hasRoom(for weight: Int) -> Bool { weight <= Self.limit &- segments }
  mutating func wait() { isWaitedFor = true }
  mutating func take(_ weight: Int) { segments &+= weight }
  mutating func give(_ weight: Int) {
    segments &-= weight
    isWaitedFor = false
  }
}

extension Virtqueue {
  /// Whether a chain that was just walked has to wait until others have ended. It is walked anew then.
  @inline(__always) mutating func mustLetOthersEnd(_ walk: borrowing ChainWalk) -> Bool {
    isHeavy(walk.list.room) ? lacksRoom(for: walk) : false
  }

  /// Whether a chain with so much storage counts: others, which are nearly all, are told apart without a call.
  @inline(__always) func isHeavy(_ capacity: Int) -> Bool { capacity > HoldBudget.free || iotlb.servesOneChain }

  private mutating func lacksRoom(for walk: borrowing ChainWalk) -> Bool {
    // A chain with a fault is given back at once, and asks for nothing twice.
    guard inFlight > 0, walk.fault == nil else { return false }
    let weight = HoldBudget.weight(capacity: walk.list.room, notes: iotlb.noteCount)
    guard !held.hasRoom(for: weight) else { return false }
    if iotlb.servesOneChain { _ = iotlb.takeNotes() }
    iotlb.endWalk(repeats: true)
    held.wait()
    return true
  }

  /// What a chain in flight counts for.
  @inline(__always) func weight(of chain: borrowing DescriptorChain) -> Int {
    isHeavy(chain.memory.capacity) ? heavyWeight(of: chain) : 0
  }

  private func heavyWeight(of chain: borrowing DescriptorChain) -> Int {
    let notes = iotlb.servesOneChain ? ranges[chain.sequence]?.count ?? 0 : 0
    return HoldBudget.weight(capacity: chain.memory.capacity, notes: notes)
  }
}
