import QTestKit
import Testing

@Suite("QEMU without a guest: what a block device is asked", .needsQEMU) struct RequestTests {
  @Test(
    "The configuration space tells the size; flush, identify, discard and write zeroes do what they say",
    arguments: DiskBackend.translating, RingFormat.allCases)
  func requests(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(backend, format)
    let function = fixture.disk.function
    let driver = fixture.driver
    let memory = fixture.memory
    #expect(try function.configuration(0, as: UInt64.self) == 2048, "capacity in sectors")
    #expect(driver.features & Feature.flush != 0)
    #expect(try driver.run(DiskDriver.Request.flush) == .init(status: 0, written: 1))
    let buffer = try memory.allocate(4096)
    let name = try driver.run(DiskDriver.Request.identify, [Piece(buffer, 20, writable: true)])
    #expect(name.status == 0)

    // A range: sector, count of sectors, flags.
    let range = try memory.allocate(16, .read)
    let whole = Piece(range, 16, writable: false)
    func put(_ sector: UInt64, _ count: UInt32, _ flags: UInt32) throws {
      try memory.store(range, sector)
      try memory.store(range + 8, count)
      try memory.store(range + 12, flags)
    }
    func status(_ type: UInt32, sector: Int = 0, _ piece: Piece) throws -> UInt8 {
      try driver.run(type, sector: sector, [piece]).status
    }
    try #require(driver.features & (Feature.writeZeroes | Feature.discard) == Feature.writeZeroes | Feature.discard)
    try put(64, 16, 0)
    #expect(try driver.run(DiskDriver.Request.writeZeroes, [whole]) == .init(status: 0, written: 1))
    try expectSame(fixture.disk.image.read(64, count: 8192), [UInt8](repeating: 0, count: 8192))
    try expectSame(fixture.disk.image.read(63, count: 512), DiskImage.pattern(63, count: 512))
    try expectSame(fixture.disk.image.read(80, count: 512), DiskImage.pattern(80, count: 512))
    try put(128, 8, 1)
    #expect(try status(DiskDriver.Request.writeZeroes, whole) == 0, "with unmap")
    try expectSame(fixture.disk.image.read(128, count: 4096), [UInt8](repeating: 0, count: 4096))
    try put(256, 8, 0)
    #expect(try status(DiskDriver.Request.discard, whole) == 0)
    try expectSame(fixture.disk.image.read(255, count: 512), DiskImage.pattern(255, count: 512))
    try expectSame(fixture.disk.image.read(264, count: 512), DiskImage.pattern(264, count: 512))
    try put(2040, 16, 0)
    #expect(try status(DiskDriver.Request.writeZeroes, whole) == 1, "past the end")
    try put(0, 8, 0xfffe)
    #expect(try status(DiskDriver.Request.discard, whole) == 2, "unknown flags")

    // Past the end, over the end, and numbers of sectors that wrap: the last is 2^64 - 1.
    for (sector, count) in [(2048, 512), (2047, 1024), (.max, 512), (-1, 512)] {
      let piece = Piece(buffer, count, writable: true)
      #expect(try status(DiskDriver.Request.read, sector: sector, piece) == 1, "\(count) bytes at sector \(sector)")
    }
    #expect(try status(0x7777, Piece(buffer, 512, writable: true)) == 2, "an unknown type")
    try fixture.expectRead(sector: 2047, into: [Piece(buffer, 512, writable: true)])
    #expect(try fixture.vtd.takeFaults().isEmpty)
  }

  @Test("A read-only disk says so and refuses to be written", arguments: DiskBackend.translating)
  func readOnly(_ backend: DiskBackend) throws {
    let fixture = try Fixture(backend, wanted: DiskDriver.usual | Feature.readOnly) { $0.readOnly = true }
    #expect(fixture.driver.features & Feature.readOnly != 0)
    let buffer = try fixture.memory.allocate(512)
    let completion = try fixture.driver.run(DiskDriver.Request.write, sector: 3, [Piece(buffer, 512, writable: false)])
    #expect(completion.status == 1)
    try expectSame(fixture.disk.image.read(3, count: 512), DiskImage.pattern(3, count: 512))
    try fixture.expectRead(sector: 3, into: [Piece(buffer, 512, writable: true)])
  }

  @Test(
    "Four queues serve at once, each with a ring of its own", arguments: DiskBackend.translating, RingFormat.allCases)
  func queues(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(backend, format) { $0.queues = 4 }
    let function = fixture.disk.function
    #expect(try function.queueCount() == 4)
    let features = try DiskDriver.negotiate(function, DiskDriver.usual(format))
    #expect(features & Feature.multiQueue != 0)
    #expect(try function.configuration(34, as: UInt16.self) == 4)
    let eventIndex = features & Feature.eventIndex != 0
    let drivers = try (0..<4 as Range<UInt16>).map { queue in
      let ring = try literalRing(fixture.memory, format, size: 16 << queue, eventIndex: eventIndex)
      return try DiskDriver(function, fixture.memory, queue: queue, ring: ring, features: features)
    }
    try function.setStatus(0xf)
    // The fixture's driver left three queues without areas; QEMU itself asked its IOMMU for address 0 on their account.
    _ = try fixture.vtd.takeFaults()
    let buffers = try (0..<4).map { _ in try fixture.memory.allocate(4 * 4096) }
    for round in 0..<20 {
      var ids: [[UInt16]] = []
      for (queue, driver) in drivers.enumerated() {
        ids.append(
          try (0..<4).map { part in
            try driver.add(
              DiskDriver.Request.read, sector: round * 32 + queue * 8 + part,
              [Piece(buffers[queue] + UInt64(part) * 4096, 4096, writable: true)])
          })
      }
      for driver in drivers { try driver.notify() }
      for (queue, driver) in drivers.enumerated() {
        for (part, id) in ids[queue].enumerated() {
          #expect(try driver.wait(id) == .init(status: 0, written: 4097))
          let bytes = try fixture.memory.read(buffers[queue] + UInt64(part) * 4096, count: 4096)
          expectSame(bytes, DiskImage.pattern(round * 32 + queue * 8 + part, count: 4096), "queue \(queue)")
        }
      }
    }
    #expect(try fixture.vtd.takeFaults().isEmpty)
  }
}
