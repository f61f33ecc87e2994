import DMA
import Testing
import VirtioTestKit

@Suite("Buffers behind an IOMMU") struct BufferTests {
  @Test(
    "Bytes follow the pages in order, wherever a buffer starts and however many pages it crosses; neighbours by address are no neighbours in memory (R046, R047, R119)",
    arguments: [false, true], [(0, 4096), (4095, 2), (100, 4096), (4000, 8200), (1, 511 * 4096), (17, 512 * 4096)])
  func pages(packed: Bool, shape: (start: Int, count: Int)) throws {
    let rig = try Rig(packed: packed)
    let pages = (shape.start + shape.count + 4095) / 4096
    let from = rig.allocate(pages: pages) + UInt64(shape.start)
    let to = rig.allocate(pages: pages) + UInt64(shape.start)
    // First and last bytes of the buffer and of each page of it: what tells pages apart.
    var marks = [0, shape.count - 1]
    for page in 1..<max(2, pages) {
      let edge = page * 4096 - shape.start
      if edge < shape.count { marks += [edge - 1, edge] }
    }
    for (i, mark) in marks.enumerated() {
      rig.put([UInt8(truncatingIfNeeded: i &* 7 &+ mark)], at: from + UInt64(mark))
    }
    #expect(rig.run([rig.read(from, shape.count), rig.write(to, shape.count)]).map(\.length) == [UInt32(shape.count)])
    for mark in marks {
      #expect(rig.get(1, at: to + UInt64(mark)) == rig.get(1, at: from + UInt64(mark)), "byte \(mark)")
    }
    #expect(rig.space.faults.isEmpty)
  }

  @Test(
    "A chain with an unreachable third descriptor moves no byte, comes back with nothing written, is one fault, and the queue goes on (R087, R088, R090, R092, R094)",
    arguments: [false, true])
  func middleFault(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    let from = rig.allocate(pages: 1)
    let first = rig.allocate(pages: 1)
    // Its second page is missing: the fault is there, not where the buffer begins.
    let torn = rig.allocate(pages: 1)
    let last = rig.allocate(pages: 1)
    rig.put([9, 9, 9, 9], at: from)
    let status = rig.allocate(pages: 1)
    let used = rig.run([
      rig.read(from, 4), rig.write(first, 64), rig.write(torn, 5000), rig.write(last, 64), rig.write(status, 1),
    ])
    #expect(used.map(\.length) == [0])
    let fault = rig.fault(torn + 4096, .write)
    #expect(rig.space.faults == [fault] && rig.device.faults == [fault])
    #expect(rig.get(4, at: first) == [0, 0, 0, 0] && rig.get(4, at: torn) == [0, 0, 0, 0])
    #expect(rig.get(1, at: status) == [TestDevice.copyFailure], "the status byte can be reached, and says so")
    #expect(rig.harness.failures.isEmpty)
    rig.expectWorks()
  }

  @Test(
    "A page is read or written only as it is mapped, cached or not; a write-only page faults on a read, always (R083, R084, R085, R118)",
    arguments: [false, true])
  func permissions(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    let readOnly = rig.allocate(pages: 1, .read)
    let writeOnly = rig.allocate(pages: 1, .write)
    let sink = rig.allocate(pages: 1)
    rig.put([5, 6], at: readOnly)
    rig.put([7, 8], at: sink)
    for _ in 0..<3 {
      #expect(rig.run([rig.read(readOnly, 2), rig.write(writeOnly, 2)]).map(\.length) == [2])
      // Both pages are in the queue's cache now.
      rig.space.forgetFaults()
      #expect(rig.run([rig.read(sink, 2), rig.write(readOnly, 2)]).map(\.length) == [0])
      #expect(rig.get(2, at: readOnly) == [5, 6])
      #expect(rig.run([rig.read(writeOnly, 2), rig.write(sink, 2)]).map(\.length) == [0])
      // Its last byte is where a status would be.
      #expect(rig.get(1, at: sink) == [7])
      #expect(rig.space.faults == [rig.fault(readOnly, .write, .permission), rig.fault(writeOnly, .read, .permission)])
    }
  }

  @Test("A descriptor of no bytes is not looked up and does not fault (R055)", arguments: [false, true])
  func nothing(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    let (from, to) = (rig.allocate(pages: 1), rig.allocate(pages: 1))
    rig.put([3], at: from)
    rig.space.forgetAsked()
    #expect(
      rig.run([rig.read(0, 0), rig.read(from, 1), rig.write(UInt64.max, 0), rig.write(to, 1)]).map(\.length) == [1])
    #expect(rig.run([rig.read(0, 0), rig.write(UInt64.max, 0)]).map(\.length) == [0] && rig.device.served == 2)
    #expect(rig.get(1, at: to) == [3] && rig.space.faults.isEmpty)
    #expect(rig.space.asked.allSatisfy { $0.address != DMAAddress(0) && $0.address != DMAAddress(.max) })
  }

  @Test(
    "An address plus a length past the end of the address space is a fault, not a wrap (R059)",
    arguments: [false, true])
  func wrap(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    #expect(rig.run([rig.write(UInt64.max - 1, 4)]).map(\.length) == [0])
    #expect(rig.run([rig.read(UInt64.max, Int(UInt32.max))]).map(\.length) == [0])
    #expect(rig.space.faults.count == 2 && rig.harness.failures.isEmpty)
    rig.expectWorks()
  }

  @Test(
    "An indirect table may be scattered and needs reading only; addresses in it are translated too (R048, R049, R050)",
    arguments: [false, true])
  func indirect(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    // The table crosses from one page into another that lies elsewhere.
    let table = rig.allocate(pages: 2) + 4096 - 32
    let (from, to) = (rig.allocate(pages: 3, .read), rig.allocate(pages: 3, .write))
    var chain: [LiteralDescriptor] = []
    for page in 0..<UInt64(3) {
      rig.put([UInt8(page + 1)], at: from + page * 4096)
      chain.append(rig.read(from + page * 4096, 1))
    }
    for page in 0..<UInt64(3) { chain.append(rig.write(to + page * 4096, 1)) }
    _ = rig.ring.post(chain, table: DMAAddress(table))
    for page in [table & ~4095, (table & ~4095) + 4096] {
      let guest = rig.literal.guestAddress(DMAAddress(page))
      rig.space.map(DMAAddress(page), byteCount: 4096, to: guest, .read)
    }
    if let split = rig.ring as? LiteralSplitRing {
      // The write flag beside the table is to be ignored: a read it stays.
      split.setDescriptor(0, address: DMAAddress(table), length: UInt32(16 * chain.count), flags: 4 | 2, next: 0)
    }
    rig.ring.publish()
    rig.harness.kick(0)
    #expect(rig.ring.takeUsed().map(\.length) == [3])
    #expect((0..<UInt64(3)).map { rig.get(1, at: to + $0 * 4096)[0] } == [1, 2, 3])
    #expect(rig.space.faults.isEmpty && rig.harness.failures.isEmpty)
  }

  @Test(
    "An indirect table that cannot be reached is a fault of its request alone (R048, R090)", arguments: [false, true])
  func unreachableTable(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    let table = rig.allocate(pages: 1, .readWrite)
    _ = rig.ring.post([rig.read(table, 1)], table: DMAAddress(table))
    rig.space.unmap(DMAAddress(table), byteCount: 4096)
    rig.ring.publish()
    rig.harness.kick(0)
    #expect(rig.ring.takeUsed().map(\.length) == [0])
    #expect(rig.space.faults == [rig.fault(table)])
    rig.expectWorks()
  }

  @Test(
    "Asking ahead for pages reports no fault; a page that is refused decides the chain once (R092, R095)",
    arguments: [false, true])
  func lookAhead(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    let slow = rig.allocate(pages: 3)
    for page in UInt64(0)..<3 { rig.space.holdBack(DMAAddress(slow + page * 4096)) }
    #expect(rig.run([rig.read(slow, 3 * 4096)]).isEmpty)
    rig.harness.kick(0)
    #expect(rig.harness.isPending(0) && rig.space.faults.isEmpty)
    for page in UInt64(0)..<3 { rig.space.answer(DMAAddress(slow + page * 4096)) }
    rig.harness.kick(0)
    #expect(rig.ring.takeUsed().count == 1 && rig.space.faults.isEmpty)
    // Another page of the same chain is not there at all.
    let missing = rig.reserve(pages: 1)
    rig.space.holdBack(DMAAddress(slow))
    rig.space.fence.drain()
    var used = rig.run([rig.read(slow, 4), rig.read(missing, 4)])
    rig.space.answer(DMAAddress(slow))
    for _ in 0..<3 { rig.harness.kick(0) }
    used += rig.ring.takeUsed()
    #expect(used.map(\.length) == [0])
    #expect(rig.space.faults == [rig.fault(missing)])
  }

  @Test(
    "After an answer a chain is walked again from its start: every byte once, in order (R120)",
    arguments: [false, true])
  func again(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    let (from, to) = (rig.allocate(pages: 3), rig.allocate(pages: 3))
    for page in 0..<UInt64(3) { rig.put([UInt8(page + 10)], at: from + page * 4096) }
    for page in 0..<UInt64(3) { rig.space.holdBack(DMAAddress(from + page * 4096)) }
    #expect(rig.run([rig.read(from, 3 * 4096), rig.write(to, 3 * 4096)]).isEmpty)
    // All three are asked for at once.
    #expect(Set(rig.space.questions.map { $0.address.rawValue & ~4095 }).count == 3)
    for page in [UInt64(2), 0, 1] {
      rig.space.answer(DMAAddress(from + page * 4096))
      rig.harness.kick(0)
    }
    #expect(rig.ring.takeUsed().map(\.length) == [3 * 4096])
    #expect((0..<UInt64(3)).map { rig.get(1, at: to + $0 * 4096)[0] } == [10, 11, 12])
    #expect(rig.device.served == 1)
  }

  @Test(
    "A kick whose translation is missing is consumed; the next one is not lost (R071, R072)", arguments: [false, true])
  func kicks(packed: Bool) throws {
    let rig = try Rig(packed: packed)
    let slow = rig.allocate(pages: 1)
    rig.space.holdBack(DMAAddress(slow))
    let before = rig.harness.rounds
    #expect(rig.run([rig.read(slow, 1)]).isEmpty)
    #expect(rig.harness.rounds - before <= 2, "no spinning")
    let fast = rig.allocate(pages: 1)
    #expect(rig.run([rig.read(fast, 1)]).isEmpty, "the ring is in order: what came later waits too")
    rig.space.answer(DMAAddress(slow))
    rig.harness.kick(0)
    #expect(rig.ring.takeUsed().count == 2)
  }
}
