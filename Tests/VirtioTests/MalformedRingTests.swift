import DMA
import Testing
import VirtioTestKit

@testable import Virtio

/// With anything that a driver writes, the queue retires with the rule that was broken, and nothing traps (R091).
@Suite("Malformed rings") struct MalformedRingTests {
  struct Case: Sendable, CustomStringConvertible {
    var description: String
    var expected: QueueError
    var features: Features
    var write: @Sendable (RingRig) -> Void

    init(
      _ description: String, _ expected: QueueError,
      _ features: Features = [.version1, .indirectDescriptors, .eventIndex],
      _ write: @escaping @Sendable (RingRig) -> Void
    ) {
      (self.description, self.expected, self.features, self.write) = (description, expected, features, write)
    }
  }

  // Descriptors from number 0 on, of the ring and of the indirect table: address, length, flags, and next or nothing.
  static let split: [Case] = [
    Case("the available index jumps further than the ring is long", .availableIndex(9, expected: 0)) {
      $0.split.setAvailableIndex(9)
    },
    Case("the available index runs backwards", .availableIndex(0xffff, expected: 0)) {
      $0.split.setAvailableIndex(0xffff)
    },
    Case("a head names no descriptor", .descriptorIndex(8)) { $0.offer(head: 8, []) },
    Case("a next field names no descriptor", .descriptorIndex(0xfffe)) { $0.offer([($0.data, 1, 1, 0xfffe)]) },
    Case("a descriptor is its own successor", .chainTooLong) { $0.offer([($0.data, 1, 1, 0)]) },
    Case("a loop of empty descriptors", .chainTooLong) { $0.offer([($0.data, 0, 1, 1), ($0.data, 0, 1, 0)]) },
    Case("readable after writable", .readableAfterWritable) { $0.offer([($0.data, 1, 3, 1), ($0.data, 1, 0, 0)]) },
    Case("readable after an empty writable one", .readableAfterWritable) {
      $0.offer([($0.data, 0, 3, 1), ($0.data, 1, 0, 0)])
    },
    Case("more than 2^32 bytes", .chainTooLarge) { $0.offer([($0.data, 0xffff_ffff, 1, 1), ($0.data, 2, 0, 0)]) },
    Case("an indirect table that was not negotiated", .indirectTable, [.version1]) {
      $0.offer([($0.tables, 16, 4, 0)])
    },
    Case("an empty table", .indirectTable) { $0.offer([($0.tables, 0, 4, 0)]) },
    Case("a table of one descriptor and a half", .indirectTable) { $0.offer([($0.tables, 24, 4, 0)]) },
    Case("a table of 32769 descriptors", .indirectTable) { $0.offer([($0.tables, 16 * 32769, 4, 0)]) },
    Case("a table of 4 GiB", .indirectTable) { $0.offer([($0.tables, 0xffff_fff0, 4, 0)]) },
    Case("a table with a successor", .indirectTable) { $0.offer([($0.tables, 16, 5, 1)]) },
    Case("a table in a table", .indirectTable) { $0.offer([($0.tables, 16, 4, 0)], table: [($0.tables, 16, 4, 0)]) },
    Case("a loop in a table", .chainTooLong) {
      $0.offer([($0.tables, 32, 4, 0)], table: [($0.data, 1, 1, 1), ($0.data, 1, 1, 0)])
    },
    Case("a next field that leaves its table", .descriptorIndex(2)) {
      $0.offer([($0.tables, 32, 4, 0)], table: [($0.data, 1, 1, 2)])
    },
  ]

  static let packed: [Case] = [
    Case("every slot continues", .chainTooLong) { rig in
      for i in 0..<8 { rig.packed.put(address: rig.data, length: 1, id: UInt16(i), flags: 1) }
    },
    Case("readable after writable", .readableAfterWritable) { $0.put([($0.data, 1, 3), ($0.data, 1, 0)]) },
    Case("more than 2^32 bytes", .chainTooLarge) { $0.put([($0.data, 0xffff_ffff, 1), ($0.data, 0xffff_ffff, 0)]) },
    Case("an indirect table that was not negotiated", .indirectTable, [.version1]) { $0.put([($0.tables, 16, 4)]) },
    Case("an empty table", .indirectTable) { $0.put([($0.tables, 0, 4)]) },
    Case("a table of 17 bytes", .indirectTable) { $0.put([($0.tables, 17, 4)]) },
    Case("a table with a successor", .indirectTable) { $0.put([($0.tables, 16, 5)]) },
    Case("readable after writable in a table", .readableAfterWritable) {
      $0.put([($0.tables, 32, 4)], table: [($0.data, 1, 2), ($0.data, 1, 0)])
    },
  ]

  private func check(_ broken: Case, packed: Bool) throws {
    let indirect = broken.features.contains(.indirectDescriptors)
    let rig = try RingRig(
      RingCase(packed: packed, size: 8, indirect: indirect, eventIndex: broken.features.contains(.eventIndex)))
    broken.write(rig)
    var queue = try rig.makeQueue()
    let error = queue.error()
    #expect(error == broken.expected)
    // Retired: nothing more is popped, armed or written, and a drain does not wait for it.
    let before = rig.literal.read(64, at: rig.layout.deviceArea)
    #expect(queue.error() == nil)
    #expect(queue.armKick() == false)
    #expect(queue.takeCall() == false)
    #expect(rig.literal.read(64, at: rig.layout.deviceArea) == before)
    rig.space.fence.drain()
  }

  @Test("A split ring that breaks a rule ends the queue with that rule", arguments: split)
  func splitRing(_ broken: Case) throws { try check(broken, packed: false) }

  @Test("A packed ring that breaks a rule ends the queue with that rule", arguments: packed)
  func packedRing(_ broken: Case) throws { try check(broken, packed: true) }

  @Test("Chains popped before the broken one are given back")
  func before() throws {
    let rig = try RingRig(RingCase(packed: false, size: 8))
    rig.ring.post([LiteralDescriptor(rig.data, 4, writable: true)])
    rig.split.offer(99)
    rig.ring.publish()
    #expect(try rig.queueError() == .descriptorIndex(99))
    #expect(rig.ring.takeUsed().map(\.id) == [0])
  }

  @Test("Exactly 2^32 bytes are not too many: they fault where memory ends")
  func exactly4GiB() throws {
    let rig = try RingRig(RingCase(packed: false, size: 8))
    rig.offer([(rig.data, 0xffff_ffff, 1, 1), (rig.data, 1, 0, 0)])
    #expect(
      try rig.served().chains.first?.fault
        == DMAFault(address: rig.data + rig.dataBytes, access: .read, reason: .unmapped))
  }

  @Test(
    "An address range that wraps faults, and the last byte of the address space does not wrap (R059)",
    arguments: [UInt32(2), 4097, 1, 0xffff_ffff])
  func wrap(_ length: UInt32) throws {
    // The last range that does not wrap, and for lengths that begin there, one that does.
    let address = length == 2 ? UInt64.max : UInt64.max - UInt64(length - 1) + (length == 4097 ? 1 : 0)
    for packed in [false, true] {
      let rig = try RingRig(RingCase(packed: packed, size: 8))
      let id = rig.ring.post([
        LiteralDescriptor(rig.data, 1), LiteralDescriptor(DMAAddress(address), length, writable: true),
      ])
      rig.ring.publish()
      #expect(
        try rig.served().chains.first?.fault
          == DMAFault(address: DMAAddress(address), access: .write, reason: .unmapped))
      #expect(rig.ring.takeUsed() == [LiteralUsed(id: UInt32(id), length: 0)])
    }
  }

  @Test("Sizes and alignments that §2.6–2.8 forbid are refused before anything is read")
  func layouts() throws {
    let memory = try GuestMemory(byteCount: 1 << 20)
    let space = RecordingSpace(PhysicalSpace(memory))
    func error(_ size: UInt16, _ d: UInt64, _ a: UInt64, _ u: UInt64, packed: Bool) -> QueueError? {
      let layout = QueueLayout(
        size: size, descriptorArea: DMAAddress(d), driverArea: DMAAddress(a), deviceArea: DMAAddress(u))
      do throws(QueueError) {
        _ = try Virtqueue(
          index: 0, layout: layout, features: packed ? [.version1, .ringPacked] : [.version1], in: space)
        return nil
      } catch {
        return error
      }
    }
    for packed in [false, true] {
      for size in [0, 32769, 65535] as [UInt16] { #expect(error(size, 0, 4096, 8192, packed: packed) == .size(size)) }
      for size in [8, 32768] as [UInt16] { #expect(error(size, 0, 4096, 8192, packed: packed) == nil) }
      #expect(error(8, 8, 4096, 8192, packed: packed) == .misaligned(DMAAddress(8)))
      #expect(error(8, 0, 4096, 8194, packed: packed) == .misaligned(DMAAddress(8194)))
    }
    #expect(error(3, 0, 4096, 8192, packed: false) == .size(3))
    #expect(error(3, 0, 4096, 8192, packed: true) == nil)
    #expect(error(8, 0, 4097, 8192, packed: false) == .misaligned(DMAAddress(4097)))
    #expect(error(8, 0, 4098, 8192, packed: false) == nil)
    #expect(error(8, 0, 4098, 8192, packed: true) == .misaligned(DMAAddress(4098)))
    #expect(space.lookUps.isEmpty)
  }

  @Test("A state that names no slot of a packed ring is refused")
  func badState() throws {
    let rig = try RingRig(RingCase(packed: true, size: 5))
    for state in [QueueState(available: 5), QueueState(available: 0, used: 5), QueueState(available: 0x7fff)] {
      #expect(throws: QueueError.self) { _ = try rig.makeQueue(resumingAt: state) }
    }
  }

  @Test("A driver that adds as fast as the device takes does not keep a round going for ever")
  func endless() throws {
    let rig = try RingRig(RingCase(packed: false, size: 2, eventIndex: false))
    let id = rig.offer(rig.data, 1)
    var queue = try rig.makeQueue()
    try queue.beginRound()
    var popped = 0
    while let chain = try queue.next() {
      popped += 1
      queue.complete(chain, written: 0)
      queue.publish()
      rig.split.offer(id)
      rig.ring.publish()
      if popped > 100_000 { break }
    }
    #expect(popped > 0 && popped <= 4096)
    #expect(queue.armKick() == true, "what is left is for the next round")
    queue.endRound()
    try queue.beginRound()
    let chain = try queue.next()
    let isThere = chain != nil
    #expect(isThere)
    queue.endRound()
  }

  @Test("A chain whose pieces would cost us too much memory is refused")
  func tooManySegments() throws {
    // 4 GiB of device addresses, page by page on two pages of memory, back and forth: no two pieces can be joined.
    let rig = try RingRig(RingCase(packed: false, size: 4, path: .platform))
    let paged = try #require(rig.paged)
    let guests = [rig.literal.guestAddress(rig.data), rig.literal.guestAddress(rig.data + 8192)]
    let space = StripedSpace(memory: rig.memory, guests: guests, rest: paged)
    rig.offer([(DMAAddress(1 << 40), 0xffff_f000, 2, 0)])
    var queue = try Virtqueue(index: 0, layout: rig.layout, features: rig.kind.features, in: space)
    let error = queue.error()
    #expect(error == .chainTooLong)
  }
}

/// From 2^40 on, every page leads to one of two pages in turn.
final class StripedSpace: DMASpace {
  let fence = TranslationFence()
  let memory: GuestMemory
  let guests: [GuestAddress]
  let rest: PagedSpace
  var dirtyLog: DirtyLog? { nil }

  init(memory: GuestMemory, guests: [GuestAddress], rest: PagedSpace) {
    self.memory = memory
    self.guests = guests
    self.rest = rest
  }

  func translate(
    _ address: DMAAddress, for access: DMAAccess, waking waiter: (any TranslationWaiter)?
  ) throws(DMAInterruption) -> HostRun {
    guard address.rawValue >= 1 << 40 else { return try rest.translate(address, for: access, waking: waiter) }
    let page = address.rawValue & ~4095
    let guest = guests[Int(page >> 12 & 1)]
    guard let region = memory.run(at: guest),
      let run = region.part(
        from: guest.rawValue - region.firstAddress.rawValue, count: 4096, seenFrom: DMAAddress(page),
        permissions: .readWrite)
    else { throw .fault(DMAFault(address: address, access: access, reason: .unmapped)) }
    return run
  }
}
