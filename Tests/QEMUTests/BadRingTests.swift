import QTestKit
import Testing

@Suite("QEMU without a guest: rings no driver should write", .needsQEMU) struct BadRingTests {
  /// One thing wrong with a split ring of 16.
  enum Split: String, CaseIterable {
    case chainToItself, chainInACircle, nextOutOfRange, nextFarOutOfRange, headOutOfRange, headFarOutOfRange,
      indexTooFarAhead, indexFarAhead
    case emptyTable, tableOfAnOddLength, tableAndNext, tableInATable, tableNextOutOfRange, tableInACircle,
      tableUnmapped, tableTooLong
    case emptyDescriptor, addressWraps, addressOutOfReach, readableAfterWritable, onlyReadable, shortHeader,
      endlessLength
  }

  /// Writes what is wrong: descriptors from number 0, and what is available.
  private func write(
    _ wrong: Split, _ memory: DeviceMemory, _ areas: (descriptor: UInt64, driver: UInt64, device: UInt64),
    header: UInt64, buffer: UInt64
  ) throws {
    let table = try memory.allocate(4096, .read)
    func put(
      _ index: UInt64, _ address: UInt64, _ count: UInt32, _ flags: UInt16, _ next: UInt16 = 0, in place: UInt64? = nil
    ) throws {
      try memory.write(
        literalDescriptor(address, count, flags: flags, next: next), at: (place ?? areas.descriptor) + 16 * index)
    }
    var head: UInt16 = 0
    var index: UInt16 = 1
    // A request in order, for the wrongs that are elsewhere.
    try put(0, header, 16, 1, 1)
    try put(1, buffer, 513, 2)
    switch wrong {
    case .chainToItself: try put(0, header, 16, 1, 0)
    case .chainInACircle:
      try put(1, buffer, 512, 3, 2)
      try put(2, buffer, 512, 3, 1)
    case .nextOutOfRange: try put(0, header, 16, 1, 16)
    case .nextFarOutOfRange: try put(0, header, 16, 1, 0xffff)
    case .headOutOfRange: head = 16
    case .headFarOutOfRange: head = 0xffff
    case .indexTooFarAhead: index = 17
    case .indexFarAhead: index = 0xffff
    case .emptyTable: try put(0, table, 0, 4)
    case .tableOfAnOddLength: try put(0, table, 17, 4)
    case .tableAndNext:
      try put(0, table, 32, 5, 1)
      try put(0, header, 16, 1, 1, in: table)
      try put(1, buffer, 513, 2, in: table)
    case .tableInATable:
      try put(0, table, 32, 4)
      try put(0, table, 32, 4, in: table)
    case .tableNextOutOfRange:
      try put(0, table, 32, 4)
      try put(0, header, 16, 1, 2, in: table)
    case .tableInACircle:
      try put(0, table, 32, 4)
      try put(0, header, 16, 1, 1, in: table)
      try put(1, buffer, 512, 3, 0, in: table)
    case .tableUnmapped: try put(0, memory.reserve(1), 32, 4)
    case .tableTooLong:
      try put(0, table, 0xffff_fff0, 4)
      try put(0, header, 16, 1, 1, in: table)
      try put(1, buffer, 512, 3, 3, in: table)
    case .emptyDescriptor:
      try put(0, header, 0, 1, 1)
    case .addressWraps: try put(1, 0xffff_ffff_ffff_fe00, 0x1000, 2)
    case .addressOutOfReach: try put(1, 1 << 60, 513, 2)
    case .readableAfterWritable:
      try put(0, buffer, 513, 3, 1)
      try put(1, header, 16, 0)
    case .onlyReadable: try put(1, buffer, 512, 0)
    case .shortHeader: try put(0, header, 15, 1, 1)
    case .endlessLength:
      for slot in 0..<15 as Range<UInt64> { try put(slot, buffer, 0xffff_ffff, 3, UInt16(slot) + 1) }
      try put(15, buffer, 0xffff_ffff, 2)
    }
    try memory.store(areas.driver + 4, head)
    try memory.store(areas.driver + 2, index)
  }

  @Test(
    "A wrong split ring stops at most itself: the process lives, the other queue serves, a reset makes all well (R055, R059, R088, R089, R091)",
    arguments: DiskBackend.translating, Split.allCases)
  func split(_ backend: DiskBackend, _ wrong: Split) throws {
    try survive(backend, .split) { fixture, features, header, buffer in
      let ring = try literalRing(fixture.memory, .split)
      return (ring, { try write(wrong, fixture.memory, ring.areas, header: header, buffer: buffer) })
    }
  }

  /// One thing wrong with a packed ring of 16.
  enum Packed: String, CaseIterable {
    case chainWithoutEnd, emptyTable, tableOfAnOddLength, tableAndNext, tableInATable, tableUnmapped, tableTooLong
    case emptyDescriptor, addressWraps, addressOutOfReach, readableAfterWritable, onlyReadable, shortHeader,
      identifierFarOut
  }

  private func write(
    _ wrong: Packed, _ memory: DeviceMemory, _ areas: (descriptor: UInt64, driver: UInt64, device: UInt64),
    header: UInt64, buffer: UInt64
  ) throws {
    let table = try memory.allocate(4096, .read)
    // Available in the first round: the AVAIL bit set, the USED bit clear.
    func put(
      _ index: UInt64, _ address: UInt64, _ count: UInt32, _ flags: UInt16, id: UInt16 = 3, in place: UInt64? = nil
    ) throws {
      let available: UInt16 = place == nil ? 1 << 7 : 0
      var bytes = literalDescriptor(address, count, flags: id, next: flags | available)
      bytes[12] = UInt8(truncatingIfNeeded: id)
      try memory.write(bytes, at: (place ?? areas.descriptor) + 16 * index)
    }
    try put(1, buffer, 513, 2)
    try put(0, header, 16, 1)
    switch wrong {
    case .chainWithoutEnd: for slot in 0..<16 as Range<UInt64> { try put(slot, header, 16, 1) }
    case .emptyTable: try put(0, table, 0, 4)
    case .tableOfAnOddLength: try put(0, table, 17, 4)
    case .tableAndNext:
      try put(0, header, 16, 0, in: table)
      try put(1, buffer, 513, 2, in: table)
      try put(0, table, 32, 5)
    case .tableInATable:
      try put(0, table, 32, 4, in: table)
      try put(0, table, 16, 4)
    case .tableUnmapped: try put(0, memory.reserve(1), 32, 4)
    case .tableTooLong:
      try put(0, header, 16, 0, in: table)
      try put(0, table, 0xffff_fff0, 4)
    case .emptyDescriptor: try put(0, header, 0, 1)
    case .addressWraps: try put(1, 0xffff_ffff_ffff_fe00, 0x1000, 2)
    case .addressOutOfReach: try put(1, 1 << 60, 513, 2)
    case .readableAfterWritable:
      try put(1, header, 16, 0)
      try put(0, buffer, 513, 3)
    case .onlyReadable: try put(1, buffer, 512, 0)
    case .shortHeader: try put(0, header, 15, 1)
    case .identifierFarOut:
      try put(1, buffer, 513, 2, id: 0xffff)
      try put(0, header, 16, 1, id: 0xffff)
    }
  }

  // QEMU's own device is no referee here: it reads a broken packed ring for ever, or aborts (7.2).
  @Test(
    "A wrong packed ring stops at most itself: the process lives, the other queue serves, a reset makes all well (R055, R059, R088, R089, R091)",
    arguments: DiskBackend.translating.filter { $0 != .qemu }, Packed.allCases)
  func packed(_ backend: DiskBackend, _ wrong: Packed) throws {
    try survive(backend, .packed) { fixture, features, header, buffer in
      let ring = try literalRing(fixture.memory, .packed)
      return (ring, { try write(wrong, fixture.memory, ring.areas, header: header, buffer: buffer) })
    }
  }

  /// Two queues: the first gets the wrong ring, the second a good one.
  private func survive(
    _ backend: DiskBackend, _ format: RingFormat,
    _ prepare: (Fixture, UInt64, UInt64, UInt64) throws -> (ring: any LiteralRing, write: () throws -> Void)
  ) throws {
    let fixture = try Fixture(backend, format, size: 16) { $0.queues = 2 }
    let function = fixture.disk.function
    let qemu = fixture.qemu
    let wanted = DiskDriver.usual & ~Feature.packed & ~Feature.eventIndex | (format == .packed ? Feature.packed : 0)
    let features = try DiskDriver.negotiate(function, wanted)
    let header = try fixture.memory.allocate(4096, .read)
    let buffer = try fixture.memory.allocate(4096)
    // The page next to the buffer, in guest memory as well as for the device: nothing may run over.
    let guardPage = try qemu.frames.take()
    try qemu.fill(guardPage, count: 4096, with: 0x3c)
    let bad = try prepare(fixture, features, header, buffer)
    let areas = bad.ring.areas
    try function.enableQueue(0, size: 16, descriptor: areas.descriptor, driver: areas.driver, device: areas.device)
    let good = try DiskDriver(
      function, fixture.memory, queue: 1, ring: literalRing(fixture.memory, format), features: features)
    try function.setStatus(0xf)
    let data = try fixture.memory.allocate(512)
    #expect(try good.run(DiskDriver.Request.read, sector: 5, [Piece(data, 512, writable: true)]).status == 0)
    try bad.write()
    let used = format == .split ? areas.device + 2 : areas.descriptor + 14
    let before = try fixture.memory.load(used, as: UInt16.self)
    try qemu.store(function.notificationAddress(0), UInt16(0))
    // The device must come to a decision: complain, or complete. A silent stop is neither.
    try qemu.wait(for: "the device's decision", seconds: 5) { () throws(QTestError) in
      let status = try function.status()
      let now = try fixture.memory.load(used, as: UInt16.self)
      return status & VirtioFunction.Status.needsReset != 0 || now != before || qemu.said.contains("vring error")
    }
    if try function.status() & VirtioFunction.Status.needsReset == 0 {
      // The other queue.
      try good.expectRead(sector: 6, into: data, count: 512)
    }
    try qemu.expectFilled(guardPage, with: 0x3c, "a page that was not given away")
    let next = try DiskDriver(function, fixture.memory, format)
    try next.expectRead(sector: 7, into: data, count: 512)
    try expectSame(fixture.disk.image.read(0, count: 1 << 20), DiskImage.pattern(0, count: 1 << 20), "the image")
    if let server = fixture.disk.server { #expect(server.program.isRunning) }
  }
}
