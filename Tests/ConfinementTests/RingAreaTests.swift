import DMA
import Testing
import Virtio
import VirtioTestKit

@Suite("Ring areas behind an IOMMU") struct RingAreaTests {
  @Test(
    "Areas scattered page by page, each mapped for its own direction only, carry more than a lap (R029, R043, R052, R053, R054, R086)",
    arguments: [false, true])
  func scattered(packed: Bool) throws {
    let rig = try Rig(packed: packed, size: 1024, minimal: true)
    let (from, to) = (rig.allocate(pages: 1, .read), rig.allocate(pages: 1, .write))
    for n in 0..<600 {
      let bytes = [UInt8(n & 255), UInt8(n >> 8)]
      rig.put(bytes, at: from)
      #expect(rig.run([rig.read(from, 2), rig.write(to, 2)]).map(\.length) == [2])
      #expect(rig.get(2, at: to) == bytes)
    }
    #expect(rig.space.faults.isEmpty && rig.harness.failures.isEmpty)
    // Every address was looked up in this one space; none of them exists in guest memory.
    #expect(rig.space.asked.allSatisfy { $0.address.rawValue >= Rig.base })
  }

  @Test(
    "A hole in the second page of an area is found, and stops the queue for good: mapping it again does not restart it, a reset does (R042, R089, R099)",
    arguments: [false, true])
  func hole(packed: Bool) throws {
    let rig = try Rig(packed: packed, size: 1024)
    rig.expectWorks()
    let hole = rig.layout.descriptorArea.rawValue + 4096
    rig.space.unmap(DMAAddress(hole), byteCount: 4096)
    let from = rig.allocate(pages: 1)
    rig.run([rig.read(from, 4)])
    #expect(rig.harness.failures == [.ring(rig.fault(hole))] && rig.space.faults == [rig.fault(hole)])
    rig.map(hole, pages: 1)
    let served = rig.device.served
    rig.harness.kick(0)
    #expect(rig.harness.hasFailed(0) && rig.device.served == served && rig.ring.takeUsed().isEmpty)
    try rig.renew()
    rig.expectWorks()
  }

  @Test("A queue starts while its areas are not mapped; the first access decides (R041)", arguments: [false, true])
  func unmappedAtStart(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    let (layout, _) = literalLayout(size: 8, packed: packed, at: rig.reserve(pages: 8))
    try rig.harness.start(1, layout)
    #expect(rig.harness.failures.isEmpty)
    rig.harness.kick(1)
    #expect(rig.harness.hasFailed(1) && !rig.harness.hasFailed(0))
    rig.expectWorks()
  }

  @Test("The two bytes of the event index belong to the driver area (R045)", arguments: [false, true])
  func eventIndex(negotiated: Bool) throws {
    let rig = try Rig(packed: false, negotiated ? .eventIndex : [])
    // Eight entries: flags, index and ring are 20 bytes. They end at the end of a page, and nothing is mapped behind.
    let page = rig.allocate(pages: 1)
    var layout = rig.layout
    layout.driverArea = DMAAddress(page + 4096 - 20)
    try rig.harness.start(1, layout)
    rig.harness.kick(1)
    #expect(rig.harness.hasFailed(1) == negotiated)
    #expect(rig.harness.failures == (negotiated ? [.ring(rig.fault(page + 4096))] : []))
  }

  @Test("Areas at the very end of the address space neither wrap nor trap (R059)", arguments: [false, true])
  func top(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    var layout = rig.layout
    layout.descriptorArea = DMAAddress(UInt64.max - 15)
    try rig.harness.start(1, layout)
    rig.harness.kick(1)
    #expect(rig.harness.hasFailed(1) && !rig.harness.hasFailed(0))
    guard case .ring(let fault)? = rig.harness.failures.first else {
      return #expect(Bool(false), "\(rig.harness.failures)")
    }
    #expect(fault.address == layout.descriptorArea)
  }

  @Test(
    "The field that says whether to call is reached through the space; where it is gone, the driver hears of the queue's end instead of nothing (R074)",
    arguments: [false, true])
  func suppression(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    rig.expectWorks()
    rig.space.unmap(rig.layout.driverArea, byteCount: 4096)
    rig.harness.kick(0)
    #expect(rig.harness.failures == [.ring(rig.fault(rig.layout.driverArea.rawValue))])
  }

  @Test(
    "A ring that waits for a translation is left alone, and goes on when it is there (R072, R076)",
    arguments: [false, true])
  func pendingRing(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    rig.expectWorks()
    rig.space.holdBack(rig.layout.driverArea)
    rig.space.fence.drain()
    let from = rig.allocate(pages: 1)
    let before = rig.harness.rounds
    #expect(rig.run([rig.read(from, 1)]).isEmpty)
    #expect(rig.harness.isPending(0) && rig.harness.rounds - before <= 2)
    let asked = rig.space.asked.count
    rig.harness.kick(0)
    #expect(rig.space.asked.count - asked <= 4, "a kick looks once")
    rig.space.answer(rig.layout.driverArea)
    rig.harness.kick(0)
    #expect(rig.ring.takeUsed().count == 1 && rig.space.faults.isEmpty)
  }

  @Test("With bus mastering off nothing is reached: the queue ends, and memory stays as it is (R039)")
  func blocked() throws {
    let rig = try PlainRig(try GuestMemory(byteCount: 1 << 20), in: BlockedSpace())
    #expect(rig.run([LiteralDescriptor(DMAAddress(0x8000), 4)]).isEmpty && rig.device.served == 0)
    let fault = DMAFault(address: DMAAddress(0x1000), access: .read, reason: .busMasterDisabled)
    #expect(rig.harness.failures == [.ring(fault)])
  }

  @Test(
    "A queue that is reset and enabled elsewhere leaves the other one running (R040, R062)", arguments: [false, true])
  func queueReset(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    let (layout, end) = literalLayout(size: 8, packed: packed, at: rig.reserve(pages: 8))
    rig.map(layout.descriptorArea.rawValue, pages: Int((end - layout.descriptorArea.rawValue) / 4096))
    let other = makeLiteralRing(layout, features: rig.features, in: rig.literal)
    try rig.harness.start(1, layout)
    let from = rig.allocate(pages: 1)
    for _ in 0..<3 {
      rig.harness.stop(0)
      _ = other.post([rig.read(from, 4)])
      other.publish()
      rig.harness.kick(1)
      #expect(other.takeUsed().count == 1)
      try rig.harness.start(0, rig.layout)
      rig.harness.stop(0)
      // What was programmed is what is in force: the addresses are never replaced by what they lead to.
      let queue = try Virtqueue(index: 0, layout: rig.layout, features: rig.features, in: rig.space)
      #expect(queue.layout == rig.layout)
    }
    #expect(rig.harness.failures.isEmpty)
  }
}
