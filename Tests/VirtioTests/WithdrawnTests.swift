import DMA
import Testing
import VirtioTestKit

@testable import Virtio

/// A ring whose own mappings are taken away while chains are under way.
@Suite("Rings that are taken away", .timeLimit(.minutes(10))) struct WithdrawnTests {
  @Test(
    "A chain that holds up the end of the ring's mappings is in the used ring before they end, and the driver is called (R064, R110)",
    arguments: [false, true], [false, true])
  func lastChain(packed: Bool, inOrder: Bool) throws {
    let rig = try RingRig(RingCase(packed: packed, size: 8, inOrder: inOrder, path: .platform))
    let paged = try #require(rig.paged)
    let ids = (0..<2).map { rig.ring.post([LiteralDescriptor(rig.data + 8 * $0, 4, writable: true)]) }
    rig.ring.publish()
    var queue = try rig.makeQueue()
    try queue.beginRound()
    guard let first = try queue.next(), let second = try queue.next() else { return #expect(Bool(false)) }
    queue.endRound()
    let generation = paged.fence.generation
    paged.holdBackEverything()
    let drain = WorkThread { paged.fence.drain() }
    while paged.fence.generation == generation { drain.pause() }

    try queue.beginRound()
    let isPending = queue.isPending
    #expect(isPending && !drain.isDone)
    queue.complete(first, written: 4)
    #expect(!drain.isDone)
    queue.complete(second, written: 4)
    // The round is not ended, and nothing is answered: only the chains held the mappings.
    #expect(drain.join())
    #expect(rig.ring.takeUsed().map(\.id) == ids.map { UInt32($0) })
    let call = queue.takeCall()
    let again = queue.takeCall()
    let more = queue.armKick()
    #expect(call && !again && !more)
    queue.endRound()

    // The ring comes back, and goes on where it was.
    for area in [rig.layout.descriptorArea, rig.layout.driverArea, rig.layout.deviceArea, rig.data] {
      paged.answer(area)
    }
    let third = rig.offer(rig.data, 4, writable: true)
    #expect(try queue.serve().chains.map(\.id) == [third])
    #expect(rig.ring.takeUsed().map(\.id) == [UInt32(third)])
  }

  @Test("A ring that moves to other memory meanwhile is used there", arguments: [false, true])
  func moved(_ packed: Bool) throws {
    let (rig, paged) = try RingRig.platform(packed)
    let id = rig.offer(rig.data, 4, writable: true)
    var queue = try rig.makeQueue()
    try queue.beginRound()
    guard let chain = try queue.next() else { return #expect(Bool(false)) }
    queue.endRound()
    let generation = paged.fence.generation
    // A used ring, or descriptors, in the last page of the buffers' memory.
    let area = packed ? rig.layout.descriptorArea : rig.layout.deviceArea
    let other = rig.data + (rig.dataBytes - 4096)
    let old = rig.literal.read(4096, at: area)
    rig.literal.write(old, at: other)
    paged.map(area, byteCount: 4096, to: rig.literal.guestAddress(other))
    let drain = WorkThread { paged.fence.drain() }
    while paged.fence.generation == generation { drain.pause() }
    try queue.beginRound()
    queue.complete(chain, written: 4)
    queue.endRound()
    #expect(drain.join())
    #expect(rig.literal.read(4096, at: area) == old)
    rig.literal.map(area, byteCount: 4096, to: rig.literal.guestAddress(other))
    #expect(rig.ring.takeUsed().map(\.id) == [UInt32(id)])
  }
}
