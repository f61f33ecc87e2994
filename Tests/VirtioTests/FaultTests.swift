import DMA
import Testing
import VirtioTestKit

@testable import Virtio

/// Memory that cannot be reached, in a ring or in a chain.
@Suite("Faults") struct FaultTests {
  static let formats = [false, true]

  @Test(
    "A chain with one unreachable descriptor is given back with length 0, reported once, and the queue goes on (R087, R088, R090, R092, R094)",
    arguments: formats, 0..<5)
  func middle(_ packed: Bool, _ bad: Int) throws {
    let (rig, paged) = try RingRig.platform(packed)
    let chain = (0..<5).map { LiteralDescriptor(rig.data + 8192 * $0 + 100, 50, writable: $0 >= 2) }
    for i in 0..<5 { rig.literal.write([UInt8](repeating: 0xEE, count: 50), at: chain[i].address) }
    paged.unmap(rig.data + 8192 * bad, byteCount: 4096)
    let id = rig.ring.post(chain)
    rig.ring.publish()
    var queue = try rig.makeQueue()
    var served = try queue.serve(status: 7)
    let fault = DMAFault(address: chain[bad].address, access: bad >= 2 ? .write : .read, reason: .unmapped)
    #expect(served.chains == [Popped(id: id, read: [], room: 0, fault: fault)])
    #expect(rig.ring.takeUsed() == [LiteralUsed(id: UInt32(id), length: 0)])
    #expect(paged.faults == [fault])
    // Of writable memory the status byte alone was touched, if it can be reached.
    for i in 2..<5 where i != bad {
      let expected = [UInt8](repeating: 0xEE, count: 49) + [i == 4 ? 7 : 0xEE]
      #expect(rig.literal.read(50, at: chain[i].address) == expected)
    }
    rig.offer(rig.data + 12288, 4, writable: true)
    served = try queue.serve()
    #expect(served.chains.map(\.room) == [4])
    #expect(paged.faults.count == 1)
  }

  @Test(
    "The fault of a descriptor over many pages names its first unreachable byte (R046, R047, R094)", arguments: formats)
  func firstByte(_ packed: Bool) throws {
    let (rig, paged) = try RingRig.platform(packed)
    paged.unmap(rig.data + 4096 * 3, byteCount: 4096)
    rig.offer(rig.data + 4090, 4096 * 4, writable: true)
    #expect(
      try rig.served().chains.first?.fault == DMAFault(address: rig.data + 4096 * 3, access: .write, reason: .unmapped))
    #expect(
      rig.literal.read(4096, at: rig.data + 4096 * 2) == [UInt8](repeating: 0, count: 4096),
      "not one byte was written (R084)")
  }

  @Test("Permissions are those of the page, whatever the neighbours allow (R083, R084, R118)", arguments: formats)
  func permissions(_ packed: Bool) throws {
    let (rig, paged) = try RingRig.platform(packed)
    let readOnly = rig.data
    let writeOnly = rig.data + 4096
    paged.map(readOnly, byteCount: 4096, to: rig.literal.guestAddress(readOnly), .read)
    paged.map(writeOnly, byteCount: 4096, to: rig.literal.guestAddress(writeOnly), .write)
    func fault(_ descriptor: LiteralDescriptor) throws -> DMAFault? {
      rig.ring.post([descriptor])
      rig.ring.publish()
      var queue = try rig.makeQueue(resumingAt: state)
      let served = try queue.serve()
      state = queue.state
      _ = rig.ring.takeUsed()
      return served.chains.first?.fault
    }
    var state = QueueState.initial
    #expect(try fault(LiteralDescriptor(readOnly, 8)) == nil)
    #expect(
      try fault(LiteralDescriptor(readOnly, 8, writable: true))
        == DMAFault(address: readOnly, access: .write, reason: .permission))
    #expect(try fault(LiteralDescriptor(writeOnly, 8, writable: true)) == nil)
    #expect(
      try fault(LiteralDescriptor(writeOnly, 8)) == DMAFault(address: writeOnly, access: .read, reason: .permission),
      "(R085)")
    // Across the boundary: the first byte of the page that refuses.
    #expect(
      try fault(LiteralDescriptor(readOnly + 4000, 200))
        == DMAFault(address: writeOnly, access: .read, reason: .permission))
  }

  @Test("A queue that gives up at a chain comes upon that chain again when it starts anew (R099)", arguments: formats)
  func givesUp(_ packed: Bool) throws {
    // Chains of three slots: the second one of the packed ring is across its end.
    let rig = try RingRig(RingCase(packed: packed, size: packed ? 5 : 8, path: .platform))
    var state = QueueState.initial
    for _ in 0..<4 {
      let id = rig.ring.post((0..<3).map { LiteralDescriptor(rig.data + 64 * $0, 10, writable: $0 > 0) })
      rig.ring.publish()
      var first = try rig.makeQueue(resumingAt: state)
      try first.beginRound()
      if let chain = try first.next() { first.retire(at: chain) }
      let isOver = try first.next() == nil
      first.endRound()
      let (place, lent) = (first.state, first.inFlight)
      #expect(isOver && place == state && lent == 0)
      #expect(rig.ring.takeUsed() == [])
      var second = try rig.makeQueue(resumingAt: state)
      let served = try second.serve()
      #expect(served.chains.map(\.id) == [id])
      #expect(rig.ring.takeUsed() == [LiteralUsed(id: UInt32(id), length: 20)])
      state = second.state
    }
  }

  @Test(
    "An indirect table is read with read permission alone, whatever the descriptor's flags say (R048)",
    arguments: formats)
  func tableIsRead(_ packed: Bool) throws {
    for permissions in [DMAPermissions.read, .write] {
      let (rig, paged) = try RingRig.platform(packed)
      paged.map(rig.tables, byteCount: 4096, to: rig.literal.guestAddress(rig.tables), permissions)
      if packed {
        rig.put([(rig.tables, 16, 4 | 2)], table: [(rig.data, 9, 2)])
      } else {
        rig.offer([(rig.tables, 16, 4 | 2, 0)], table: [(rig.data, 9, 2, 0)])
      }
      let served = try rig.served()
      if permissions == .read {
        #expect(served.chains.map(\.room) == [9])
      } else {
        #expect(served.chains.first?.fault == DMAFault(address: rig.tables, access: .read, reason: .permission))
      }
    }
  }

  @Test(
    "An indirect table may lie across pages that are apart, at any alignment (R049)", arguments: formats,
    [40, 16, 8, 1])
  func tableAcrossPages(_ packed: Bool, _ before: Int) throws {
    let (rig, paged) = try RingRig.platform(packed)
    let table = rig.data + (8192 - before)
    for i in 0..<4 {
      rig.literal.write([UInt8(i + 1)], at: rig.data + i)
      if packed {
        rig.packed.setDescriptorBytes(at: table + 16 * i, address: rig.data + i, length: 1, flags: 0)
      } else {
        rig.split.setDescriptor(
          at: table + 16 * i, address: rig.data + i, length: 1, flags: i < 3 ? 1 : 0, next: UInt16(i + 1))
      }
    }
    func offerTable() { if packed { rig.put(id: 5, [(table, 64, 4)]) } else { rig.offer([(table, 64, 4, 0)]) } }
    offerTable()
    var queue = try rig.makeQueue()
    var served = try queue.serve()
    #expect(served.chains.map(\.read) == [[1, 2, 3, 4]])
    // With its second page gone, the chain faults there.
    paged.unmap(rig.data + 4096 * 2, byteCount: 4096)
    offerTable()
    served = try queue.serve()
    #expect(served.chains.first?.fault == DMAFault(address: rig.data + 4096 * 2, access: .read, reason: .unmapped))
  }

  @Test(
    "A split ring's descriptors and available ring need read permission only, its used ring write only (R053, R054)")
  func leastPermissions() throws {
    let (rig, paged) = try RingRig.platform(false, size: 256)
    func set(_ area: DMAAddress, _ bytes: Int, _ permissions: DMAPermissions) {
      for page in stride(from: 0, to: bytes, by: 4096) {
        paged.map(area + page, byteCount: 4096, to: rig.literal.guestAddress(area + page), permissions)
      }
    }
    set(rig.layout.descriptorArea, 4096, .read)
    set(rig.layout.driverArea, 518, .read)
    set(rig.layout.deviceArea, 2054, .write)
    var queue = try rig.makeQueue()
    for i in 0..<600 {
      rig.ring.post([LiteralDescriptor(rig.data, 4, writable: true)])
      #expect(rig.ring.publish() || i == 0)
      let served = try queue.serve()
      #expect(served.chains.count == 1)
      #expect(rig.ring.takeUsed().count == 1)
    }
    #expect(paged.faults.isEmpty)
    // And the other way round each is refused, and only needs-reset mends it (R089).
    for (area, bytes, refused, access) in [
      (rig.layout.descriptorArea, 4096, DMAPermissions.write, DMAAccess.read),
      (rig.layout.driverArea, 518, .write, .read),
      (rig.layout.deviceArea, 2054, .read, .write),
    ] {
      set(area, bytes, refused)
      paged.fence.drain()
      var other = try rig.makeQueue(resumingAt: queue.state)
      let error = other.error()
      #expect(error == .ring(DMAFault(address: area, access: access, reason: .permission)))
      set(area, bytes, .readWrite)
      // Mapped again: the queue that failed stays failed (R099).
      rig.offer(rig.data, 4, writable: true)
      let served = try other.serve()
      #expect(served.chains.isEmpty)
      _ = try queue.serve()
      #expect(rig.ring.takeUsed().count == 1)
    }
  }

  @Test("A packed ring is read and written; its event areas are read and written one each (R052)")
  func packedPermissions() throws {
    let (rig, paged) = try RingRig.platform(true)
    paged.map(rig.layout.driverArea, byteCount: 4096, to: rig.literal.guestAddress(rig.layout.driverArea), .read)
    paged.map(rig.layout.deviceArea, byteCount: 4096, to: rig.literal.guestAddress(rig.layout.deviceArea), .write)
    rig.offer(rig.data, 4, writable: true)
    #expect(try rig.served().chains.count == 1 && paged.faults.isEmpty)
    for (permissions, access) in [(DMAPermissions.read, DMAAccess.write), (.write, .read)] {
      paged.map(
        rig.layout.descriptorArea, byteCount: 4096, to: rig.literal.guestAddress(rig.layout.descriptorArea), permissions
      )
      paged.fence.drain()
      var other = try rig.makeQueue()
      let error = other.error()
      #expect(error == .ring(DMAFault(address: rig.layout.descriptorArea, access: access, reason: .permission)))
    }
  }

  @Test("A hole in any page of any area is found before the ring is used (R041, R042)", arguments: formats)
  func holes(_ packed: Bool) throws {
    let (rig, paged) = try RingRig.platform(packed, size: 1024)
    let bytes = rig.layout.byteCounts(packed: packed, eventIndex: true)
    for (area, count) in [
      (rig.layout.descriptorArea, bytes.descriptor), (rig.layout.driverArea, bytes.driver),
      (rig.layout.deviceArea, bytes.device),
    ] {
      for page in stride(from: 0, to: count, by: 4096) {
        let guest = rig.literal.guestAddress(area + page)
        paged.unmap(area + page, byteCount: 4096)
        paged.forgetFaults()
        let error = try rig.queueError()
        guard case .ring(let fault)? = error else {
          Issue.record("\(String(describing: error)) for a hole at \(page)")
          continue
        }
        #expect(fault.address == area + page && fault.reason == .unmapped)
        #expect(paged.faults == [fault])
        paged.map(area + page, byteCount: 4096, to: guest)
      }
    }
  }

  @Test("Ring memory at an odd place in host memory is refused: its cells could not be whole")
  func oddHost() throws {
    let memory = GuestMemory()
    try memory.add(0, byteCount: 65536, try HostMapping(anonymous: 1 << 20), at: 3)
    let layout = QueueLayout(
      size: 8, descriptorArea: DMAAddress(0), driverArea: DMAAddress(4096), deviceArea: DMAAddress(8192))
    var queue = try Virtqueue(index: 0, layout: layout, features: [.version1], in: PhysicalSpace(memory))
    let error = queue.error()
    #expect(error == .ring(DMAFault(address: DMAAddress(0), access: .read, reason: .discontiguous)))
  }

  @Test("A ring page that moves between rounds is followed (R044, R112)", arguments: formats)
  func moves(_ packed: Bool) throws {
    for table in [false, true] {
      let rig = try RingRig(RingCase(packed: packed, size: 8, path: .platform), table: table)
      let paged = try #require(rig.paged)
      var queue = try rig.makeQueue()
      for _ in 0..<3 {
        rig.offer(rig.data, 4, writable: true)
        let served = try queue.serve()
        #expect(served.chains.count == 1)
        #expect(rig.ring.takeUsed().count == 1)
        // Every area moves to pages of the data area; the old ones are scribbled over.
        for (i, area) in [rig.layout.descriptorArea, rig.layout.driverArea, rig.layout.deviceArea].enumerated() {
          let fresh = rig.literal.guestAddress(rig.data + 4096 * (8 + i))
          let old = rig.literal.guestAddress(area)
          let bytes = rig.literal.read(4096, at: area)
          rig.literal.map(rig.data + 4096 * (8 + i), byteCount: 4096, to: old)
          rig.literal.map(area, byteCount: 4096, to: fresh)
          rig.literal.write(bytes, at: area)
          rig.literal.write([UInt8](repeating: 0xFF, count: 4096), at: rig.data + 4096 * (8 + i))
          paged.unmap(area, byteCount: 4096)
          paged.map(area, byteCount: 4096, to: fresh)
        }
      }
      // Not one byte of the old pages changed afterwards.
      for i in 0..<3 {
        #expect(rig.literal.read(4096, at: rig.data + 4096 * (8 + i)) == [UInt8](repeating: 0xFF, count: 4096))
      }
    }
  }
}
