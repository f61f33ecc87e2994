import DMA
import Testing
import VirtioTestKit

@testable import Virtio

/// Both formats, byte for byte, as the specification's structures lay them out.
@Suite("Ring layouts") struct RingTableTests {
  @Test("Areas are as long as the tables of §2.7 and §2.8 say, event fields included when negotiated (R045)")
  func areas() {
    let none = DMAAddress(0)
    let layout = QueueLayout(size: 256, descriptorArea: none, driverArea: none, deviceArea: none)
    let flags = layout.byteCounts(packed: false, eventIndex: false)
    #expect(flags == (4096, 516, 2052))
    let event = layout.byteCounts(packed: false, eventIndex: true)
    #expect(event == (4096, 518, 2054))
    let packed = layout.byteCounts(packed: true, eventIndex: true)
    #expect(packed == (4096, 4, 4))
  }

  @Test("A split chain is found by its next fields and given back by its head")
  func splitChain() throws {
    let rig = try RingRig(RingCase(packed: false, size: 8, eventIndex: false))
    let ring = rig.split
    rig.literal.write([1, 2, 3], at: rig.data)
    rig.literal.write([4, 5], at: rig.data + 100)
    ring.setDescriptor(6, address: rig.data, length: 3, flags: 1, next: 2)
    ring.setDescriptor(2, address: rig.data + 100, length: 2, flags: 1, next: 7)
    ring.setDescriptor(7, address: rig.data + 200, length: 5, flags: 2, next: 0xffff)
    ring.offer(6)
    ring.publish()
    #expect(try rig.served(fill: 0x5A).chains == [Popped(id: 6, read: [1, 2, 3, 4, 5], room: 5)])
    #expect(rig.literal.read(12, at: rig.layout.deviceArea) == [0, 0, 1, 0, 6, 0, 0, 0, 5, 0, 0, 0])
    #expect(rig.literal.read(6, at: rig.data + 200) == [0x5A, 0x5A, 0x5A, 0x5A, 0x5A, 0])
    // Not a byte of the driver's areas changed.
    #expect(rig.literal.read(8, at: rig.layout.driverArea) == [0, 0, 1, 0, 6, 0, 0, 0])
  }

  @Test("A split ring asks for kicks in its flags, or with an event index behind its entries")
  func splitKicks() throws {
    for event in [false, true] {
      let rig = try RingRig(RingCase(packed: false, size: 4, eventIndex: event))
      var queue = try rig.makeQueue()
      try queue.beginRound()
      queue.disarmKick()
      #expect(rig.split.usedFlags == (event ? 0 : 1))
      rig.offer(rig.data, 1)
      let seen = queue.armKick()
      #expect(seen, "what came while kicks were off is seen when they are armed")
      #expect(rig.split.usedFlags == 0)
      if let chain = try queue.next() { queue.complete(chain, written: 0) }
      #expect(queue.armKick() == false)
      if event { #expect(rig.literal.le16(at: rig.layout.deviceArea + 4 + 8 * 4) == 1) }
      queue.endRound()
      // The next one is wanted, and the one after it is not asked for twice.
      rig.ring.post([LiteralDescriptor(rig.data, 1)])
      #expect(rig.ring.publish())
      rig.ring.post([LiteralDescriptor(rig.data, 1)])
      #expect(rig.ring.publish() == !event)
    }
  }

  @Test("A packed chain takes one used descriptor, in the slot of its first, with the wrap counter's bits")
  func packedChain() throws {
    let rig = try RingRig(RingCase(packed: true, size: 3, eventIndex: false))
    let ring = rig.packed
    rig.literal.write([9, 8], at: rig.data)
    var queue = try rig.makeQueue()
    // The ID is that of the last descriptor.
    ring.put(address: rig.data, length: 2, id: 77, flags: 1)
    ring.put(address: rig.data + 64, length: 4, id: 2, flags: 2)
    var served = try queue.serve()
    #expect(served.chains == [Popped(id: 2, read: [9, 8], room: 4)])
    #expect(rig.literal.le32(at: rig.layout.descriptorArea + 8) == 4)
    #expect(rig.literal.le16(at: rig.layout.descriptorArea + 12) == 2)
    #expect(ring.flags(of: 0) == 0x8082, "available and used bits equal the wrap counter, and something was written")
    #expect(ring.flags(of: 1) == 0x0082, "skipped slots stay as the driver wrote them")
    #expect(queue.state == QueueState(available: 2, availableWrap: true, used: 2, usedWrap: true))
    // Round the corner: slot 2, then 0 in the next lap.
    ring.put(address: rig.data, length: 1, id: 1, flags: 1)
    ring.put(address: rig.data, length: 1, id: 1, flags: 0)
    served = try queue.serve()
    #expect(served.chains.map(\.id) == [1])
    #expect(ring.flags(of: 2) == 0x8080, "nothing was written: no write flag")
    #expect(queue.state == QueueState(available: 1, availableWrap: false, used: 1, usedWrap: false))
    ring.put(address: rig.data, length: 1, id: 0, flags: 2)
    served = try queue.serve()
    #expect(served.chains.map(\.id) == [0])
    #expect(ring.flags(of: 1) == 0x0002, "in the second lap both bits are clear")
  }

  @Test("A packed ring's first lap: zeroed descriptors are neither available nor used")
  func packedZero() throws {
    let rig = try RingRig(RingCase(packed: true, size: 5))
    let served = try rig.served()
    #expect(served.chains.isEmpty && !served.more && !served.call)
    #expect(rig.packed.takeUsed().isEmpty)
  }

  @Test("A packed ring asks for kicks in its event structure")
  func packedKicks() throws {
    let rig = try RingRig(RingCase(packed: true, size: 4, eventIndex: true))
    var queue = try rig.makeQueue()
    try queue.beginRound()
    queue.disarmKick()
    #expect(rig.packed.deviceEvent.flags == 1)
    rig.ring.post([LiteralDescriptor(rig.data, 1)])
    #expect(!rig.ring.publish())
    #expect(queue.armKick() == true)
    if let chain = try queue.next() { queue.complete(chain, written: 0) }
    #expect(queue.armKick() == false)
    queue.endRound()
    let event = rig.packed.deviceEvent
    #expect(event == (1, true, 2))
    rig.ring.post([LiteralDescriptor(rig.data, 1)])
    #expect(rig.ring.publish())
    rig.ring.post([LiteralDescriptor(rig.data, 1)])
    #expect(!rig.ring.publish())
  }

  @Test("A packed indirect table has no chaining: every entry counts and only the write flag does")
  func packedIndirect() throws {
    let rig = try RingRig(RingCase(packed: true, size: 4))
    rig.literal.write([1], at: rig.data)
    rig.literal.write([2], at: rig.data + 1)
    let table = rig.tables
    // Reserved flags and IDs are noise that the device ignores (§2.8.7).
    rig.packed.setDescriptor(at: table, address: rig.data, length: 1, id: 0xdead, flags: 4)
    rig.packed.setDescriptor(at: table + 16, address: rig.data + 1, length: 1, id: 0xbeef, flags: 0)
    rig.packed.setDescriptor(at: table + 32, address: rig.data + 2, length: 3, id: 1, flags: 0xff7f & ~5 | 2)
    rig.packed.put(address: table, length: 48, id: 3, flags: 4)
    #expect(try rig.served().chains == [Popped(id: 3, read: [1, 2], room: 3)])
  }

  @Test("Normal descriptors may be followed by one indirect one (R051, R050)", arguments: [false, true])
  func mixedChain(_ scattered: Bool) throws {
    let rig = try RingRig(RingCase(packed: false, size: 4, path: scattered ? .platform : .physical))
    rig.literal.write([1], at: rig.data)
    rig.literal.write([2], at: rig.data + 5000)
    // The write flag of the descriptor that points to a table means nothing (R048).
    rig.split.setDescriptor(3, address: rig.tables, length: 32, flags: 4 | 2, next: 0)
    rig.offer([(rig.data, 1, 1, 3)], table: [(rig.data + 5000, 1, 1, 1), (rig.data + 9000, 7, 2, 0)])
    #expect(try rig.served().chains == [Popped(id: 0, read: [1, 2], room: 7)])
  }

  @Test("Between rounds and before the first one a queue touches no memory")
  func idle() throws {
    let rig = try RingRig(RingCase(packed: false, path: .platform))
    guard let paged = rig.paged else { return }
    let before = paged.asked.count
    rig.offer(rig.data, 1)
    var queue = try rig.makeQueue()
    #expect(queue.isEmpty == true)
    #expect(queue.armKick() == false)
    #expect(queue.takeCall() == false)
    #expect(paged.asked.count == before)
    _ = try queue.serve()
    #expect(rig.ring.takeUsed().count == 1)
  }
}
