import DMA
import Foundation
import Synchronization
import Testing
import VirtioTestKit

/// Taking mappings away while queues use them, with real threads.
@Suite("Translation fence")
struct FenceTests {
  @Test("A drain waits for the round under way, and for nothing that begins after it (R110)")
  func waitsForRound() {
    let fence = TranslationFence()
    var lease = fence.lease()
    var other = fence.lease()
    let first = lease.begin()
    #expect(first)
    let drain = WorkThread { fence.drain() }
    while !lease.isStale { drain.pause() }
    // New work of another queue comes and goes meanwhile.
    for _ in 0..<100 {
      _ = other.begin()
      other.end()
    }
    drain.pause()
    #expect(!drain.isDone)
    let clock = ContinuousClock()
    lease.end()
    let took = clock.measure { #expect(drain.join()) }
    #expect(took < .seconds(10))
    let moved = lease.begin()
    #expect(moved, "the next round sees a new generation")
    lease.end()
    let same = lease.begin()
    #expect(!same)
    lease.end()
  }

  @Test("A drain waits for a chain that outlasts its round, however many rounds come after (R110)")
  func waitsForChain() {
    let fence = TranslationFence()
    var lease = fence.lease()
    _ = lease.begin()
    var chain: ChainLease? = lease.chain()
    lease.end()
    let drain = WorkThread { fence.drain() }
    while fence.generation == 0 { drain.pause() }
    for _ in 0..<50 {
      _ = lease.begin()
      let young = lease.chain()
      _ = consume young
      lease.end()
    }
    drain.pause()
    #expect(!drain.isDone)
    _ = lease.begin()
    let held = chain.take()
    #expect(held != nil ? true : false)
    _ = consume held
    lease.end()
    #expect(drain.join())
  }

  @Test("A chain that outlives its queue is waited for all the same")
  func chainOutlivesQueue() {
    let fence = TranslationFence()
    func orphan() -> ChainLease {
      var lease = fence.lease()
      _ = lease.begin()
      let chain = lease.chain()
      lease.end()
      return chain
    }
    let chain = orphan()
    let drain = WorkThread { fence.drain() }
    while fence.generation == 0 { drain.pause() }
    drain.pause()
    #expect(!drain.isDone)
    // Another queue gets a place of its own meanwhile.
    var next = fence.lease()
    _ = next.begin()
    next.end()
    _ = consume chain
    #expect(drain.join())
  }

  @Test("Many queues and many drains: nothing is used after the drain that took it away", .timeLimit(.minutes(10)))
  func stress() async {
    let fence = TranslationFence()
    // The "mapping" is a number: readers may see the one in force when they began; the drainer poisons it after its drain.
    let current = Atomic<Int>(0)
    let poisoned = SharedFlags(count: 4096)
    let stop = Atomic<Bool>(false)
    let violations = Atomic<Int>(0)
    let rounds = Atomic<Int>(0)
    let finished = Atomic<Int>(0)
    for _ in 0..<3 {
      Thread.detachNewThread {
        var lease = fence.lease()
        var held: ChainLease?
        var heldMapping = 0
        var n = 0
        while !stop.load(ordering: .relaxed) {
          _ = lease.begin()
          if let chain = held.take() {
            if poisoned[heldMapping] { violations.add(1, ordering: .relaxed) }
            _ = consume chain
          }
          let mapping = current.load(ordering: .acquiring)
          for _ in 0..<20 where poisoned[mapping] { violations.add(1, ordering: .relaxed) }
          n += 1
          if n % 3 == 0 {
            held = lease.chain()
            heldMapping = mapping
          }
          if poisoned[mapping] { violations.add(1, ordering: .relaxed) }
          lease.end()
          rounds.add(1, ordering: .relaxed)
        }
        _ = lease.begin()
        held = nil
        lease.end()
        finished.add(1, ordering: .releasing)
      }
    }
    let drainers = 2
    let next = Atomic<Int>(1)
    let drained = Atomic<Int>(0)
    for _ in 0..<drainers {
      Thread.detachNewThread {
        for _ in 0..<100 {
          let mine = next.add(1, ordering: .relaxed).oldValue
          let old = current.exchange(mine, ordering: .acquiringAndReleasing)
          fence.drain()
          poisoned[old] = true
        }
        drained.add(1, ordering: .releasing)
      }
    }
    while drained.load(ordering: .acquiring) < drainers { try? await Task.sleep(for: .milliseconds(2)) }
    stop.store(true, ordering: .relaxed)
    while finished.load(ordering: .acquiring) < 3 { try? await Task.sleep(for: .milliseconds(2)) }
    #expect(violations.load(ordering: .relaxed) == 0)
    #expect(rounds.load(ordering: .relaxed) > 0)
  }
}

/// Flags that any thread may set and read: cells of memory, because the thread sanitizer does not see into `Mutex`.
final class SharedFlags: Sendable {
  private let memory: HostMapping

  init(count: Int) {
    guard let memory = try? HostMapping(anonymous: 2 * count) else { fatalError("no memory for \(count) flags") }
    self.memory = memory
  }

  subscript(_ i: Int) -> Bool {
    get { memory.cells(from: 2 * i, byteCount: 2)?.loadAcquire16(at: 0) == 1 }
    set { memory.cells(from: 2 * i, byteCount: 2)?.storeRelease16(newValue ? 1 : 0, at: 0) }
  }
}
