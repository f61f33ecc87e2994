import Synchronization

/// What one queue holds of its space's mappings, as drains see it: whether a round is under way, and where its chains
/// are.
///
/// The queue writes: the word of its round, and in each chain's storage the chain's pages and, last, its stamp. Drains
/// read. The list of storage is changed when storage is made or freed, not for a request.
@safe @usableFromInline final class QueueHolds: @unchecked Sendable {
  // Safe (unchecked Sendable): the word is atomic, the list is under its mutex, the rest does not change.
  //
  // `round` holds 0, or the generation of the round under way plus 1.
  private let round: UnsafeMutableRawPointer
  /// Used by every chain in flight.
  private let areas: [ClosedRange<UInt64>]
  private struct State {
    // Safe: each is a live block of ours; it is taken out before it is freed.
    var blocks: [UInt] = []
    var isOver = false
  }
  private let state = Mutex(State())

  /// Which drains to wake when a chain ends after its queue.
  private weak let fence: TranslationFence?

  init(_ fence: TranslationFence, areas: [ClosedRange<UInt64>]) {
    self.fence = fence
    self.areas = areas
    // Safe: a line of its own, zeroed before use, freed in deinit.
    unsafe round = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 64)
    unsafe round.initializeMemory(as: UInt8.self, repeating: 0, count: 64)
  }

  // Every block retains this object: none is left.
  deinit { unsafe round.deallocate() }

  // MARK: The queue's thread

  func beginRound(_ generation: UInt64) { unsafe storeRelease64(round, generation &+ 1) }
  func endRound() { unsafe storeRelease64(round, 0) }

  /// Shows a block to drains from now on.
  func add(_ block: UnsafeMutablePointer<SegmentHeader>) {
    // Safe: the block is new and ours; it gives this reference back when it is freed.
    unsafe block.pointee.holds = Unmanaged.passRetained(self)
    state.withLock { state in
      unsafe block.pointee.place = state.blocks.count
      state.blocks.append(UInt(bitPattern: block))
    }
  }

  /// Hides a block, whose memory may be freed then.
  func remove(_ block: UnsafeMutablePointer<SegmentHeader>) {
    let isLate = state.withLock { state in
      let place = unsafe block.pointee.place
      let last = state.blocks.removeLast()
      if place < state.blocks.count {
        state.blocks[place] = last
        // Safe: blocks in the list are alive.
        unsafe UnsafeMutablePointer<SegmentHeader>(bitPattern: last)!.pointee.place = place
      }
      return state.isOver
    }
    // No round of the queue will end any more, whose end would do it.
    if isLate { fence?.wake() }
  }

  /// Whether a chain that was sealed is neither given back nor dropped.
  var hasChains: Bool {
    state.withLock { state in
      state.blocks.contains { block in
        // Safe: blocks in the list are alive.
        unsafe load64(SegmentHeader.stamp(UnsafeMutablePointer<SegmentHeader>(bitPattern: block).unsafelyUnwrapped))
          != 0
      }
    }
  }

  // MARK: Drains

  /// Whether a round of generation `old` or before is under way, or a chain of one uses some byte of `range`.
  func isBusy(upTo old: UInt64, _ range: ClosedRange<UInt64>) -> Bool {
    let begun = unsafe loadAcquire64(round)
    if begun != 0, begun &- 1 <= old { return true }
    let everywhere = areas.contains { $0.overlaps(range) }
    return state.withLock { state in
      for block in state.blocks {
        // Safe: blocks in the list are alive, and none is freed while the list is locked.
        let header = unsafe UnsafeMutablePointer<SegmentHeader>(bitPattern: block).unsafelyUnwrapped
        let stamp = unsafe loadAcquire64(SegmentHeader.stamp(header))
        guard stamp != 0, stamp &- 1 <= old else { continue }
        if everywhere { return true }
        if unsafe SegmentHeader.uses(header, range) { return true }
      }
      return false
    }
  }

  /// The queue has ended; chains may be left.
  func end() { state.withLock { $0.isOver = true } }

  /// Whether the queue has ended, and left nothing.
  var isOver: Bool { state.withLock { $0.isOver && $0.blocks.isEmpty } }
}
