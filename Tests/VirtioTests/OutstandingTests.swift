import DMA
import Glibc
import Testing
import VirtioTestKit

@testable import Virtio

@Suite("What a queue takes at most") struct OutstandingTests {
  /// Descriptor `i` alone, as the driver makes it available for the first time, or for the second.
  private func post(_ i: Int, again: Bool, in rig: RingRig) {
    let at = rig.layout.descriptorArea + 16 * i
    rig.literal.write(rig.data.rawValue.bytes + UInt32(16).bytes, at: at)
    if rig.kind.isPacked {
      rig.literal.write(le16: UInt16(i), at: at + 12)
      rig.literal.write(le16: again ? 1 << 15 : 1 << 7, at: at + 14)
    } else {
      rig.literal.write(le16: 0, at: at + 12)
      rig.literal.write(le16: UInt16(i), at: rig.layout.driverArea + 4 + 2 * i)
      rig.literal.write(le16: UInt16(i + 1 + (again ? Int(rig.layout.size) : 0)), at: rig.layout.driverArea + 2)
    }
  }

  @Test(
    "A driver that makes more available than its ring holds, besides what the device still has, has broken the ring",
    arguments: [false, true], [false, true])
  func bound(_ packed: Bool, _ inOrder: Bool) throws {
    let size = 8
    let rig = try RingRig(
      RingCase(packed: packed, size: UInt16(size), indirect: false, eventIndex: false, inOrder: inOrder))
    var queue = try rig.makeQueue()
    for i in 0..<size { post(i, again: false, in: rig) }
    try queue.beginRound()
    var held = SlotTable<DescriptorChain>(capacity: 2 * size)
    while let chain = try queue.next() { _ = held.insert(chain) }
    #expect(held.count == size)
    // In order, all but the first are done, and wait for the first: the driver has got none of them back.
    if inOrder {
      for slot in 1..<size { if let chain = held.remove(slot) { queue.complete(chain, written: 0) } }
      queue.publish()
    }
    let none = try queue.next() == nil
    #expect(none, "a full ring is no mistake")
    post(0, again: true, in: rig)
    #expect(throws: QueueError.tooManyAvailable(UInt16(size))) { _ = try queue.next() }
    queue.endRound()
  }

  @Test("A round yields 256 chains, and what is left is the next one's", arguments: [false, true])
  func chains(_ packed: Bool) throws {
    let rig = try RingRig(RingCase(packed: packed, size: 512, indirect: false))
    for _ in 0..<300 { rig.ring.post([LiteralDescriptor(rig.data, 16, writable: true)]) }
    rig.ring.publish()
    var queue = try rig.makeQueue()
    let first = try queue.serve()
    let isSpent = queue.isSpent
    #expect(first.chains.count == 256 && first.more && isSpent)
    let second = try queue.serve()
    #expect(second.chains.count == 44 && !second.more)
  }

  @Test("A round ends when a handler that does slow things has used a millisecond up", arguments: [false, true])
  func time(_ packed: Bool) throws {
    let rig = try RingRig(RingCase(packed: packed, indirect: false))
    for _ in 0..<8 { rig.ring.post([LiteralDescriptor(rig.data, 16, writable: true)]) }
    rig.ring.publish()
    var queue = try rig.makeQueue()
    try queue.beginRound()
    var count = 0
    while let chain = try queue.next() {
      queue.complete(chain, written: 0)
      count += 1
      // More than the time of a round.
      usleep(2000)
      queue.lookAtClock()
    }
    let (isSpent, more) = (queue.isSpent, queue.armKick())
    #expect(count == 2 && isSpent && more)
    queue.endRound()
    #expect(try queue.serve().chains.count == 6)
  }
}
