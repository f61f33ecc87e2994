import Testing
import VirtioTestKit

@testable import Virtio

/// When the device calls and when the driver kicks: exactly when the other asked for it.
@Suite("Notification suppression") struct SuppressionTests {
  @Test("A split ring calls when the entry that used_event names was used since the last question (§2.7.7)")
  func splitCalls() throws {
    let rig = try RingRig(RingCase(packed: false, size: 8), startingAt: 65_500)
    var queue = try rig.makeQueue(resumingAt: QueueState(available: 65_500, used: 65_500))
    #expect(try queue.serve().call, "a predecessor that used the entries may not have called")
    var random = SeededGenerator(3)
    var used: UInt16 = 65_500
    for _ in 0..<400 {
      let count = Int.random(in: 0...8, using: &random)
      let event = used &+ UInt16(truncatingIfNeeded: Int.random(in: -10...10, using: &random))
      rig.split.setUsedEvent(event)
      for _ in 0..<count { rig.ring.post([LiteralDescriptor(rig.data, 1)]) }
      rig.ring.publish()
      let served = try queue.serve()
      let newlyUsed = (0..<count).map { used &+ UInt16($0) }
      #expect(served.call == newlyUsed.contains(event), "\(used) + \(count), event \(event)")
      used &+= UInt16(count)
      #expect(rig.ring.takeUsed().count == count)
    }
  }

  @Test(
    "A packed ring calls when the slot its driver names, in the lap it names, was used since (§2.8.10)",
    arguments: [UInt16(7), 8, 1])
  func packedCalls(_ size: UInt16) throws {
    let rig = try RingRig(RingCase(packed: true, size: size))
    var queue = try rig.makeQueue()
    var random = SeededGenerator(4)
    var slot = 0
    var wrap = true
    for _ in 0..<400 {
      // The event is up to a ring's length away, in both directions.
      let n = Int(size)
      let distance = Int.random(in: -n...n, using: &random)
      var eventSlot = slot + distance
      var eventWrap = wrap
      if eventSlot < 0 {
        eventSlot += n
        eventWrap.toggle()
      } else if eventSlot >= n {
        eventSlot -= n
        eventWrap.toggle()
      }
      if eventSlot >= n || eventSlot < 0 { continue }
      rig.packed.setDriverEvent(offset: UInt16(eventSlot), wrap: eventWrap, flags: 2)
      var passed: [(Int, Bool)] = []
      for _ in 0..<Int.random(in: 0...n, using: &random) where rig.ring.free > 0 {
        let length = Int.random(in: 1...min(3, rig.ring.free), using: &random)
        rig.ring.post((0..<length).map { LiteralDescriptor(rig.data + $0, 1) })
        for _ in 0..<length {
          passed.append((slot, wrap))
          slot += 1
          if slot == n {
            slot = 0
            wrap.toggle()
          }
        }
      }
      rig.ring.publish()
      let served = try queue.serve()
      let isWanted = passed.contains { $0 == (eventSlot, eventWrap) }
      #expect(served.call == isWanted, "passed \(passed), event \(eventSlot) \(eventWrap)")
      _ = rig.ring.takeUsed()
    }
  }

  @Test("Without an event index the flag alone decides", arguments: [false, true])
  func flags(_ packed: Bool) throws {
    let rig = try RingRig(RingCase(packed: packed, eventIndex: false))
    var queue = try rig.makeQueue()
    for wanted in [true, false, true, false, false] {
      if wanted { rig.ring.wantCalls() } else { rig.ring.refuseCalls() }
      rig.ring.post([LiteralDescriptor(rig.data, 1)])
      #expect(rig.ring.publish())
      let served = try queue.serve()
      #expect(served.call == wanted)
      _ = rig.ring.takeUsed()
    }
    let idle = try queue.serve()
    #expect(!idle.call, "nothing used, nothing to call for")
  }

  @Test("An offset beyond a packed ring, or reserved flags, mean: call")
  func nonsense() throws {
    let rig = try RingRig(RingCase(packed: true, size: 5))
    var queue = try rig.makeQueue()
    for (offset, flags) in [(UInt16(5), UInt16(2)), (0x7fff, 2), (0, 3), (0, 0xfffc)] {
      rig.packed.setDriverEvent(offset: offset, wrap: true, flags: flags)
      rig.offer(rig.data, 1)
      let served = try queue.serve()
      #expect(served.call)
      _ = rig.ring.takeUsed()
    }
  }

  @Test("However many are used before the question, a call that is due is not lost", arguments: [false, true])
  func many(_ packed: Bool) throws {
    let rig = try RingRig(RingCase(packed: packed, size: 8))
    var queue = try rig.makeQueue()
    if packed { rig.packed.setDriverEvent(offset: 3, wrap: true, flags: 2) } else { rig.split.setUsedEvent(3) }
    // 65536 in one go: sixteen bits of distance come round to where they were.
    var done = 0
    while done < 65_536 {
      try queue.beginRound()
      let id = rig.offer(rig.data, 1)
      if let chain = try queue.next() { queue.complete(chain, written: 0) }
      queue.publish()
      queue.endRound()
      guard rig.ring.takeUsed() == [LiteralUsed(id: UInt32(id), length: 0)] else { break }
      done += 1
    }
    #expect(done == 65_536)
    try queue.beginRound()
    #expect(queue.takeCall() == true)
    queue.endRound()
  }

  @Test("What was used before the chain that breaks the queue is called for, once")
  func callBeforeTheEnd() throws {
    let rig = try RingRig(RingCase(packed: false, size: 8, eventIndex: false))
    var queue = try rig.makeQueue()
    rig.ring.post([LiteralDescriptor(rig.data, 1)])
    rig.split.offer(8)
    rig.ring.publish()
    let error = queue.error()
    #expect(error == .descriptorIndex(8))
    let first = queue.takeCall(), second = queue.takeCall()
    #expect(first && !second)
    #expect(rig.ring.takeUsed().count == 1)
  }
}
