internal import DMA

/// How much a queue's chains in flight may hold: a driver decides how many pieces its buffers have, and how many chains
/// it makes available at once, and must not decide how much memory that costs us.
///
/// Counted in segments, as the chains' storage has room for them. Chains of the usual kind, whose number the ring
/// bounds, are not counted. One chain is always taken, however long: it then has the budget to itself.
struct HoldBudget {
  /// Segments that the longer chains of a queue hold together, at most.
  static let limit = 1 << 15
  /// A chain with room for no more than this costs what every chain costs.
  static let free = 64

  /// Chains with room for no more than this need no second look: their room is all that they may count for.
  private let light: Int
  private(set) var segments = 0
  /// A chain was not taken for lack of room. It is tried again when another one has ended.
  private(set) var isWaitedFor = false

  /// - Parameter hearsOfChains: what chains named counts too, even of those whose storage is small.
  init(hearsOfChains: Bool = false) { light = hearsOfChains ? -1 : Self.free }

  /// Whether a chain with so much storage may count. Nearly none do.
  @inline(__always) func isHeavy(_ capacity: Int) -> Bool { capacity > light }

  /// What a chain counts for: its segments and, where the space keeps them, the pieces that it named.
  static func weight(capacity: Int, named: Int) -> Int { capacity + named > free ? capacity + named : 0 }

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
  mutating func lacksRoom(for walk: borrowing ChainWalk) -> Bool {
    // A chain with a fault is given back at once, and asks for nothing twice.
    guard held.isHeavy(walk.list.room) || walk.list.hasCopies, inFlight > 0, walk.fault == nil else { return false }
    let weight = HoldBudget.weight(capacity: walk.list.room, named: iotlb.namedPieces + walk.list.copiedPages)
    guard !held.hasRoom(for: weight) else { return false }
    iotlb.walkRepeats()
    iotlb.endWalk(repeats: true)
    held.wait()
    return true
  }

  /// Counts the next chain.
  mutating func takeHeavy(_ walk: borrowing ChainWalk) {
    guard held.isHeavy(walk.list.room) || walk.list.hasCopies else { return }
    held.take(HoldBudget.weight(capacity: walk.list.room, named: iotlb.namedPieces + walk.list.copiedPages))
    iotlb.taken(popped)
  }

  /// A chain ends.
  @inline(__always) mutating func give(_ chain: borrowing DescriptorChain) {
    if held.isHeavy(chain.memory.capacity) || chain.memory.hasCopies {
      giveHeavy(chain.memory.capacity, chain.memory.copiedPages, chain.sequence)
    } else {
      held.give(0)
    }
  }

  @inline(never) private mutating func giveHeavy(_ capacity: Int, _ copied: Int, _ sequence: UInt32) {
    held.give(HoldBudget.weight(capacity: capacity, named: iotlb.ended(sequence) + copied))
  }
}
