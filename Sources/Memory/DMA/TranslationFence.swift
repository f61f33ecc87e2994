internal import CLinux
import Synchronization

/// Ends the use of translations: a control thread that removed a mapping calls ``drain(from:through:)`` and knows
/// afterwards that nothing in this process, input and output in flight included, can still use it.
///
/// Each queue holds a ``Lease``. Two things on it are seen from here: whether a *round* is under way, in which the
/// queue looks addresses up, and which pages each of its *chains* uses, published before the round ends (`QueueHolds`).
/// `drain` moves the generation, waits for rounds of an older one, and then for older chains whose pages overlap what
/// was removed. It waits for no other chain, and new work is not held up. A queue pays two memory fences a round, and a
/// few plain stores a chain.
///
///     queue:  round = g + 1 · fence · g still the generation? · look up … publish chains · round = 0 · fence
///             · a drain waits?
///     drain:  (mapping removed) · note the range · generation + 1 · waiting + 1 · fence · old rounds?
///             · old chains on these pages? · sleep until a round ends · look again
///
/// `Models/fence.pml` is the same protocol for spin.
@safe public final class TranslationFence: @unchecked Sendable {
  // Safe (unchecked Sendable): the words are atomics; the list is under its mutex.
  //
  // Layout of `words`: 0 generation (8), 64 drains that wait (4), 68 turn (4), 128 the last ranges taken away (16
  // each).
  @usableFromInline let words: UnsafeMutableRawPointer
  private let drains = Mutex(())
  private let queues = Mutex<[QueueHolds]>([])
  /// Ranges that are remembered: a queue that missed more of them forgets everything.
  static var remembered: UInt64 { 64 }

  public init() {
    // Safe: zeroed before use, freed in deinit.
    unsafe words = UnsafeMutableRawPointer.allocate(byteCount: 128 + 16 * Int(Self.remembered), alignment: 64)
    unsafe words.initializeMemory(as: UInt8.self, repeating: 0, count: 128 + 16 * Int(Self.remembered))
  }

  deinit { unsafe words.deallocate() }

  /// How often something was taken away.
  @inlinable public var generation: UInt64 { unsafe loadAcquire64(words) }

  /// Returns when nothing begun before the call can still use the bytes `first` through `last`: by default everything.
  /// From a control thread only: a queue's own thread would wait for itself. Several may drain at once, and wait for
  /// their own pages only.
  public func drain(from first: UInt64 = 0, through last: UInt64 = .max) {
    let range = Self.range(from: first, through: last)
    drain(forgetting: range, used: range)
  }

  /// The bytes `first` through `last`; everything if that is none.
  package static func range(from first: UInt64, through last: UInt64) -> ClosedRange<UInt64> {
    first <= last ? first...last : 0...UInt64.max
  }

  /// As ``drain(from:through:)`` for the bytes of `used`; queues forget what they remember of `forgotten`, which may be
  /// more.
  func drain(forgetting forgotten: ClosedRange<UInt64>, used: ClosedRange<UInt64>) {
    let old = advance(forgetting: forgotten)
    // Safe: here and below, an aligned word of ours.
    _ = unsafe (words + 64).assumingMemoryBound(to: Atomic<UInt32>.self).pointee.wrappingAdd(1, ordering: .relaxed)
    fullFence()
    while true {
      let turn = unsafe loadAcquire32(words + 68)
      let isBusy = queues.withLock { $0.contains { $0.isBusy(upTo: old, used) } }
      if !isBusy { break }
      // The time-out is a belt: the fences at a round's end make the wake-up certain.
      unsafe clx_futex_wait(words + 68, turn, 100_000_000)
    }
    _ = unsafe (words + 64).assumingMemoryBound(to: Atomic<UInt32>.self).pointee.wrappingSubtract(
      1, ordering: .releasing)
  }

  /// Makes queues forget what they remember of a range from their next round on, and waits for none of them. Returns
  /// the generation that was.
  @discardableResult package func advance(forgetting forgotten: ClosedRange<UInt64>) -> UInt64 {
    drains.withLock { _ in
      let old = unsafe load64(words)
      // Safe: the index is below `remembered`.
      let note = unsafe words + 128 + 16 * Int((old &+ 1) % Self.remembered)
      unsafe store64(note, forgotten.lowerBound)
      unsafe store64(note + 8, forgotten.upperBound)
      unsafe storeRelease64(words, old &+ 1)
      // The next range must not be written before this generation is seen: see `changes(since:_:)`.
      fullFence()
      return old
    }
  }

  /// A queue's hold on this fence.
  ///
  /// - Parameter areas: device addresses that every chain in flight uses, besides its own: a ring's.
  public func lease(areas: [ClosedRange<UInt64>] = []) -> Lease {
    let holds = QueueHolds(self, areas: areas)
    queues.withLock { $0.append(holds) }
    return Lease(fence: self, holds: holds)
  }

  /// A queue has ended. Chains that outlive it keep its holds in the list.
  func end(_ holds: QueueHolds) {
    holds.end()
    queues.withLock { $0.removeAll(where: \.isOver) }
    wake()
  }

  /// Calls `body` with each range taken away since generation `old`, up to `new`. False if they are not all known any
  /// more.
  func changes(since old: UInt64, upTo new: UInt64, _ body: (UInt64, UInt64) -> Void) -> Bool {
    guard new &- old < Self.remembered - 2 else { return false }
    var g = old
    while g != new {
      g &+= 1
      // Safe: the index is below `remembered`.
      let note = unsafe words + 128 + 16 * Int(g % Self.remembered)
      body(unsafe load64(note), unsafe load64(note + 8))
    }
    atomicMemoryFence(ordering: .acquiring)
    // A note is written over only when the generation has come round to it.
    return unsafe load64(words) &- old < Self.remembered - 2
  }

  /// Lets drains look again: something they may wait for has ended.
  @usableFromInline func wake() {
    fullFence()
    guard unsafe load32(words + 64) != 0 else { return }
    // Safe: an aligned word of ours.
    _ = unsafe (words + 68).assumingMemoryBound(to: Atomic<UInt32>.self).pointee.wrappingAdd(1, ordering: .releasing)
    unsafe clx_futex_wake(words + 68)
  }
}
