import Foundation
import Synchronization
import Testing
import VirtioTestKit

@testable import DMA

/// Taking mappings away while queues use them, with real threads.
@Suite("Translation fence") struct FenceTests {
  @Test("A drain waits for the round under way, and for nothing that begins after it (R110)")
  func waitsForRound() {
    let fence = TranslationFence()
    var lease = fence.lease()
    var other = fence.lease()
    #expect(lease.begin() == true)
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
    #expect(lease.begin() == true, "the next round sees a new generation")
    lease.end()
    #expect(lease.begin() == false)
    lease.end()
  }

  @Test("A drain waits for a chain that outlasts its round, however many rounds come after (R110)")
  func waitsForChain() {
    let fence = TranslationFence()
    var lease = fence.lease()
    var chain: MappingHold? = lease.chain()
    let drain = fence.draining()
    for _ in 0..<50 {
      let young = lease.chain()
      _ = consume young
    }
    drain.pause()
    #expect(!drain.isDone)
    lease.give(back: &chain)
    #expect(drain.join())
  }

  @Test("A chain that outlives its queue is waited for all the same")
  func chainOutlivesQueue() {
    let fence = TranslationFence()
    func orphan() -> MappingHold {
      var lease = fence.lease()
      return lease.chain()
    }
    let chain = orphan()
    let drain = fence.draining()
    drain.pause()
    #expect(!drain.isDone)
    // Another queue gets a place of its own meanwhile.
    var next = fence.lease()
    _ = next.begin()
    next.end()
    _ = consume chain
    #expect(drain.join())
  }

  @Test("A drain waits for a chain that uses its bytes, and for none that uses others (R110)")
  func waitsForItsOwnPages() {
    let fence = TranslationFence()
    var lease = fence.lease()
    var slow: MappingHold? = lease.chain(from: 0x5000, through: 0x6fff)
    // Before, behind and far away; each returns, with the slow chain in flight all the time.
    for (first, last) in [(0x4000, 0x4fff), (0x7000, 0x7fff), (0, 0xfff), (1 << 40, 1 << 41)] as [(UInt64, UInt64)] {
      fence.drain(from: first, through: last)
    }
    for (first, last) in [(0x4000, 0x5000), (0x6fff, 0x7fff), (0x5800, 0x5801), (0, .max)] as [(UInt64, UInt64)] {
      let drain = fence.draining(from: first, through: last)
      // Others go on meanwhile: a drain that waits keeps no other thread from draining.
      fence.drain(from: 0x8000, through: 0x8fff)
      #expect(!drain.isDone)
      lease.give(back: &slow)
      #expect(drain.join())
      slow = lease.chain(from: 0x5000, through: 0x6fff)
    }
    _ = consume slow
  }

  @Test("Chains in flight hold the ring's areas, too (R112)")
  func chainsHoldAreas() {
    let fence = TranslationFence()
    var lease = fence.lease(areas: [0x1000...0x1fff])
    var chain: MappingHold? = lease.chain(from: 0x5000, through: 0x5fff)
    fence.drain(from: 0x2000, through: 0x2fff)
    let drain = fence.draining(from: 0x1800, through: 0x1fff)
    drain.pause()
    #expect(!drain.isDone)
    lease.give(back: &chain)
    #expect(drain.join())
    fence.drain(from: 0x1000, through: 0x1fff)
  }

  @Test("A queue hears of each range that was taken away, and of everything when it missed too many")
  func changes() {
    let fence = TranslationFence()
    func heard(_ old: UInt64) -> [ClosedRange<UInt64>]? {
      var ranges: [ClosedRange<UInt64>] = []
      return fence.changes(since: old, upTo: fence.generation) { ranges.append($0...$1) } ? ranges : nil
    }
    #expect(heard(0) == [])
    for n in UInt64(0)..<40 { fence.drain(from: n << 12, through: n << 12 | 4095) }
    #expect(heard(0) == (UInt64(0)..<40).map { $0 << 12...($0 << 12 | 4095) })
    #expect(heard(39) == [UInt64(39) << 12...(UInt64(39) << 12 | 4095)] as [ClosedRange<UInt64>])
    for n in UInt64(40)..<100 { fence.drain(from: n << 12, through: n << 12 | 4095) }
    #expect(heard(0) == nil)
    #expect(heard(90)?.count == 10)
    #expect(heard(40).map { $0.count == 60 } ?? true)
  }

  @Test(
    "Many queues, many pages, many drains: no page is used after the drain that took it away", .timeLimit(.minutes(10)))
  func stress() async throws {
    let fence = TranslationFence()
    // Each page's mapping is a number: readers may see the one in force when they began; a drainer poisons it after its
    // drain.
    let pages = 8
    let current = try SharedNumbers(count: pages)
    for page in 0..<pages { current[page] = page }
    let poisoned = try SharedNumbers(count: 8192)
    let stop = Atomic<Bool>(false)
    let violations = Atomic<Int>(0)
    let rounds = Atomic<Int>(0)
    let finished = Atomic<Int>(0)
    for reader in 0..<3 {
      Thread.detachNewThread {
        var lease = fence.lease()
        var held: MappingHold?
        var heldMapping = 0
        var n = reader
        while !stop.load(ordering: .relaxed) {
          _ = lease.begin()
          if n % 5 == 0, let chain = held.take() {
            if poisoned[heldMapping] == 1 { violations.add(1, ordering: .relaxed) }
            _ = consume chain
          }
          let page = n * 7 % pages
          let mapping = current[page]
          for _ in 0..<20 where poisoned[mapping] == 1 { violations.add(1, ordering: .relaxed) }
          n += 1
          if held == nil {
            held = lease.hold(from: UInt64(page) << 12, through: UInt64(page) << 12 | 4095)
            heldMapping = mapping
          }
          if poisoned[mapping] == 1 || poisoned[heldMapping] == 1 { violations.add(1, ordering: .relaxed) }
          lease.end()
          if poisoned[heldMapping] == 1 { violations.add(1, ordering: .relaxed) }
          rounds.add(1, ordering: .relaxed)
        }
        _ = lease.begin()
        held = nil
        lease.end()
        finished.add(1, ordering: .releasing)
      }
    }
    let drainers = 2
    let next = Atomic<Int>(pages)
    let drained = Atomic<Int>(0)
    for drainer in 0..<drainers {
      Thread.detachNewThread {
        for n in 0..<400 {
          // Each drainer has pages of its own: one at a time, two now and then, and all once in a while.
          let (low, high) = (drainer * pages / drainers, (drainer + 1) * pages / drainers)
          let first = low + n * 3 % (high - low)
          let count = n % 50 == 49 ? high - first : n % 4 == 3 ? min(2, high - first) : 1
          var old: [Int] = []
          for page in first..<first + count {
            let mine = next.add(1, ordering: .relaxed).oldValue
            old.append(current[page])
            current[page] = mine
          }
          fence.drain(from: UInt64(first) << 12, through: UInt64(first + count) << 12 - 1)
          for mapping in old { poisoned[mapping] = 1 }
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

  @Test(
    "Ten thousand unmaps of other pages while one request is in flight: each returns at once, and none of its own does (R110)"
  )
  func otherPages() {
    let fence = TranslationFence()
    var lease = fence.lease()
    var slow: MappingHold? = lease.chain(from: 0, through: 4095)
    let own = fence.draining(from: 0, through: 4095)
    let clock = ContinuousClock()
    var times: [Duration] = []
    for n in UInt64(1)...10_000 { times.append(clock.measure { fence.drain(from: n << 12, through: n << 12 | 4095) }) }
    times.sort()
    #expect(times[9_900] < .milliseconds(1))
    #expect(!own.isDone)
    lease.give(back: &slow)
    #expect(own.join())
  }
}

extension TranslationFence {
  /// A thread that drains a range, which has begun.
  fileprivate func draining(from first: UInt64 = 0, through last: UInt64 = .max) -> WorkThread {
    let before = generation
    let thread = WorkThread { [self] in drain(from: first, through: last) }
    while generation == before { thread.pause() }
    return thread
  }
}

extension Lease {
  /// A chain that outlasts its round.
  fileprivate mutating func chain(from first: UInt64 = 0, through last: UInt64 = .max) -> MappingHold {
    _ = begin()
    defer { end() }
    return hold(from: first, through: last)
  }

  /// Ends a chain, in a round.
  fileprivate mutating func give(back chain: inout MappingHold?) {
    _ = begin()
    guard let held = chain.take() else { preconditionFailure("a chain is given back once") }
    _ = consume held
    end()
  }
}

/// Numbers that any thread may read, and one at a time write: cells of memory, because the thread sanitizer does not see
/// into `Mutex`.
final class SharedNumbers: Sendable {
  private let memory: HostMapping

  init(count: Int) throws(MappingError) { memory = try HostMapping(anonymous: 8 * count) }

  subscript(_ i: Int) -> Int {
    get { Int(memory.cells(from: 8 * i, byteCount: 8)?.loadAcquire64(at: 0) ?? .max) }
    set { memory.cells(from: 8 * i, byteCount: 8)?.storeRelease64(UInt64(newValue), at: 0) }
  }
}
