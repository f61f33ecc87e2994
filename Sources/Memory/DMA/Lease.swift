/// A queue's hold on a ``TranslationFence``: rounds, and the chains popped in them. One thread uses it.
@safe public struct Lease: ~Copyable {
  @usableFromInline let fence: TranslationFence
  @usableFromInline let holds: QueueHolds
  @usableFromInline var generation: UInt64 = .max
  @usableFromInline var isActive = false

  init(fence: TranslationFence, holds: QueueHolds) {
    self.fence = fence
    self.holds = holds
  }

  deinit {
    holds.endRound()
    fence.end(holds)
  }

  /// Begins a round. True when the generation moved since the last one: mappings were taken away.
  public mutating func begin() -> Bool {
    while true {
      let g = fence.generation
      holds.beginRound(g)
      fullFence()
      if fence.generation == g {
        isActive = true
        if g == generation { return false }
        generation = g
        return true
      }
      holds.endRound()
      // The drain that moved the generation may have seen us and gone to sleep.
      fence.wake()
    }
  }

  /// Whether a drain began since ``begin()``: then end the round and begin another.
  @inlinable public var isStale: Bool {
    // Safe: the fence's words live as long as the fence, which this value holds.
    unsafe load64(fence.words) != generation
  }

  /// Ends a round. Chains popped in it go on holding their pages.
  public mutating func end() {
    guard isActive else { return }
    isActive = false
    holds.endRound()
    fence.wake()
  }

  /// What marks a chain as resolved in the round under way.
  @inlinable var stamp: UInt64 { generation &+ 1 }

  /// A hold on the bytes `first` through `last`, for what is no chain of a queue: from the round under way until the
  /// value ends, on the same thread.
  package func hold(from first: UInt64 = 0, through last: UInt64 = .max) -> MappingHold {
    var pool = SegmentPool(holds, keeping: 1)
    var list = pool.take()
    list.append(host: 0, count: last &- first &+ 1, device: first)
    return MappingHold(memory: list.seal(self, fault: nil))
  }
}

/// A hold on mappings by itself; see ``Lease/hold(from:through:)``.
package struct MappingHold: ~Copyable {
  let memory: ChainMemory
}
