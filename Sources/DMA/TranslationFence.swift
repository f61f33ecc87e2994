internal import CLinux
import Synchronization

/// Ends the use of translations: whoever removed a mapping calls ``drain()`` and knows afterwards that nothing in this
/// process, input and output in flight included, can still use it.
///
/// Each queue holds a ``Lease`` with two sets of counters, of which it alone writes. A round (one dispatch of its worker)
/// and every chain popped in it count under the parity of the generation they began in. `drain` advances the generation and
/// waits for the counters of the old parity: new work is not held up, and a queue pays two fences a round, nothing a chain.
///
///     queue:  active[g&1] = 1 · fence · g still the generation? · translate …          active[g&1] = 0 · fence · anyone waiting?
///     drain:  (mapping removed) · generation += 1 · fence · counters of the old parity all 0?  · wait on `turn`
@safe public final class TranslationFence: @unchecked Sendable {
  // Safe (unchecked Sendable): the words are atomics; the lists are under their mutexes.
  //
  // Layout of `words`: 0 generation (8), 64 waiting (4), 68 turn (4).
  @usableFromInline let words: UnsafeMutableRawPointer
  private let drains = Mutex(())
  private struct Slots {
    // Safe: each element is a 64-byte block allocated below and freed in deinit only.
    var all: [UInt] = []
    var free: [UInt] = []
  }
  private let slots = Mutex(Slots())

  public init() {
    // Safe: 128 bytes, zeroed before use, freed in deinit.
    unsafe words = UnsafeMutableRawPointer.allocate(byteCount: 128, alignment: 64)
    unsafe words.initializeMemory(as: UInt8.self, repeating: 0, count: 128)
  }

  deinit {
    slots.withLock { slots in
      for slot in slots.all {
        // Safe: allocated in lease(); every Lease retains its fence, so none is left. A chain that outlived its queue may
        // still count down in its slot: such a slot is never freed.
        let p = unsafe UnsafeMutableRawPointer(bitPattern: slot)!
        if unsafe load64(p + 8) == 0 { unsafe p.deallocate() }
      }
    }
    unsafe words.deallocate()
  }

  /// How often the fence was drained. A queue that sees a new value drops what it cached.
  @inlinable public var generation: UInt64 { unsafe loadAcquire64(words) }

  /// Returns when nothing begun before the call is under way any more. From a control thread only: a queue's own thread
  /// would wait for itself.
  public func drain() {
    drains.withLock { _ in
      let old = unsafe load64(words)
      unsafe storeRelease64(words, old &+ 1)
      unsafe store32(words + 64, 1)
      fullFence()
      let parity = Int(old & 1)
      let watched = slots.withLock { $0.all }
      while true {
        let turn = unsafe loadAcquire32(words + 68)
        // Safe: slots live as long as the fence.
        let busy = watched.contains { slot in
          let p = unsafe UnsafeMutableRawPointer(bitPattern: slot)!
          return unsafe loadAcquire32(p + 4 * parity) != 0 || loadAcquire32(p + 8 + 4 * parity) != 0
        }
        if !busy { break }
        // The time-out is a belt: the fences at a round's end make the wake-up certain.
        unsafe clx_futex_wait(words + 68, turn, 100_000_000)
      }
      unsafe store32(words + 64, 0)
    }
  }

  /// A queue's hold on this fence.
  public func lease() -> Lease {
    let slot = slots.withLock { slots in
      if let slot = slots.free.popLast() { return slot }
      // Safe: 64 bytes, zeroed, freed in deinit.
      let p = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 64)
      unsafe p.initializeMemory(as: UInt8.self, repeating: 0, count: 64)
      let slot = UInt(bitPattern: p)
      slots.all.append(slot)
      return slot
    }
    return unsafe Lease(fence: self, slot: UnsafeMutableRawPointer(bitPattern: slot)!)
  }

  fileprivate func give(back slot: UnsafeMutableRawPointer) {
    unsafe storeRelease64(slot, 0)
    // A chain that outlives its queue keeps the slot: drains go on waiting for it, and nobody else gets it.
    let isFree = unsafe loadAcquire64(slot + 8) == 0
    wake()
    let slot = UInt(bitPattern: slot)
    if isFree { slots.withLock { $0.free.append(slot) } }
  }

  @usableFromInline func wake() {
    fullFence()
    guard unsafe load32(words + 64) != 0 else { return }
    // Safe: an aligned word of ours.
    _ = unsafe (words + 68).assumingMemoryBound(to: Atomic<UInt32>.self).pointee.wrappingAdd(1, ordering: .releasing)
    unsafe clx_futex_wake(words + 68)
  }
}

/// A queue's counters on a ``TranslationFence``. One thread uses it.
@safe public struct Lease: ~Copyable {
  @usableFromInline let fence: TranslationFence
  @usableFromInline let slot: UnsafeMutableRawPointer
  @usableFromInline var generation: UInt64 = .max
  @usableFromInline var isActive = false

  init(fence: TranslationFence, slot: UnsafeMutableRawPointer) {
    self.fence = fence
    unsafe self.slot = slot
  }

  deinit {
    unsafe fence.give(back: slot)
  }

  /// Begins a round. True when the generation moved since the last one: what was cached before must be dropped.
  @inlinable public mutating func begin() -> Bool {
    while true {
      let g = fence.generation
      unsafe storeRelease32(slot + 4 * Int(g & 1), 1)
      fullFence()
      if fence.generation == g {
        isActive = true
        if g == generation { return false }
        generation = g
        return true
      }
      unsafe storeRelease32(slot + 4 * Int(g & 1), 0)
      // The drain that moved the generation may have seen us and gone to sleep.
      fence.wake()
    }
  }

  /// Whether a drain began since ``begin()``: then end the round and begin another.
  @inlinable public var isStale: Bool { unsafe load64(fence.words) != generation }

  /// Ends a round.
  @inlinable public mutating func end() {
    guard isActive else { return }
    isActive = false
    unsafe storeRelease32(slot + 4 * Int(generation & 1), 0)
    fence.wake()
  }

  /// A hold for one chain, begun within a round, that may outlast it.
  @inlinable public func chain() -> ChainLease {
    unsafe ChainLease(cell: slot + 8 + 4 * Int(generation & 1))
  }
}

/// One chain's hold on the mappings it was resolved through; ends when it is destroyed, on the queue's thread and within a
/// round (or before the queue is destroyed).
@safe @frozen public struct ChainLease: ~Copyable {
  @usableFromInline let cell: UnsafeMutableRawPointer

  @inlinable init(cell: UnsafeMutableRawPointer) {
    unsafe self.cell = cell
    // Safe: one writer, so a plain read and store do.
    unsafe store32(cell, load32(cell) &+ 1)
  }

  @inlinable deinit {
    unsafe storeRelease32(cell, load32(cell) &- 1)
  }

  /// Passes the hold on to whoever takes the cell.
  @inlinable consuming func release() -> UnsafeMutableRawPointer {
    let cell = unsafe self.cell
    discard self
    return unsafe cell
  }
}
