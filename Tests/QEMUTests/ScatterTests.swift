import QTestKit
import Testing

@Suite("QEMU without a guest: scattered memory", .needsQEMU) struct ScatterTests {
  @Test(
    "A chain of many small pieces in many pages is filled in order (R046, R047)", arguments: DiskBackend.translating,
    RingFormat.allCases)
  func pieces(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(backend, format, size: 64)
    let memory = fixture.memory
    // Starts and ends in the middle of pages, crosses one page border, two, and none; 16 sectors in all.
    let area = try memory.allocate(16 * 4096)
    let places: [(UInt64, Int)] = [
      (1, 1), (100, 27), (4090, 12), (2 * 4096 - 1, 2), (3 * 4096 - 3, 4102), (5 * 4096, 512), (6 * 4096 + 1000, 3096),
      (8 * 4096 + 17, 240),
      (9 * 4096 + 511, 200),
    ]
    let count = places.reduce(0) { $0 + $1.1 }
    #expect(count == 8192)
    for indirect in [false, true] {
      let pieces = places.map { Piece(area + $0.0, $0.1, writable: true) }
      try fixture.expectRead(sector: 40, into: pieces, indirect: indirect)
    }
    // And back: the same pieces, written to the disk.
    let bytes = DiskImage.pattern(0, count: count, seed: 99)
    var done = 0
    for place in places {
      try memory.write(Array(bytes[done..<done + place.1]), at: area + place.0)
      done += place.1
    }
    let written = try fixture.driver.run(
      DiskDriver.Request.write, sector: 100, places.map { Piece(area + $0.0, $0.1, writable: false) })
    #expect(written.status == 0)
    try expectSame(fixture.disk.image.read(100, count: count), bytes)
    try expectSame(fixture.disk.image.read(99, count: 512), DiskImage.pattern(99, count: 512))
    try expectSame(fixture.disk.image.read(116, count: 512), DiskImage.pattern(116, count: 512))
  }

  /// How a megabyte is cut.
  enum Cut: String, CaseIterable { case onePiece, pagePieces, pagePiecesIndirect }

  @Test(
    "A megabyte over 256 scattered pages arrives whole, both ways (R046, R047)", arguments: DiskBackend.translating,
    Cut.allCases)
  func megabyte(_ backend: DiskBackend, _ cut: Cut) throws {
    for format in RingFormat.allCases {
      let fixture = try Fixture(backend, format, size: 512) {
        $0.queueSize = 512
        $0.sectors = 8192
      }
      let memory = fixture.memory
      let buffer = try memory.allocate(1 << 20)
      func pieces(writable: Bool) -> [Piece] {
        cut == .onePiece
          ? [Piece(buffer, 1 << 20, writable: writable)]
          : (0..<256).map { Piece(buffer + UInt64($0) * 4096, 4096, writable: writable) }
      }
      try fixture.expectRead(sector: 1000, into: pieces(writable: true), indirect: cut == .pagePiecesIndirect)
      let completion = try fixture.driver.run(
        DiskDriver.Request.write, sector: 4096, pieces(writable: false), indirect: cut == .pagePiecesIndirect)
      #expect(completion.status == 0)
      try expectSame(fixture.disk.image.read(4096, count: 1 << 20), DiskImage.pattern(1000, count: 1 << 20))
    }
  }

  @Test("One hole in the middle of a megabyte refuses all of it (R047, R087)", arguments: DiskBackend.translating)
  func hole(_ backend: DiskBackend) throws {
    let fixture = try Fixture(backend, .split, size: 16)
    let memory = fixture.memory
    let buffer = try memory.allocate(64 * 4096)
    try fixture.expectRead(sector: 0, into: [Piece(buffer, 64 * 4096, writable: true)])
    let missing = buffer + 40 * 4096
    let frame = try memory.frame(of: missing)
    try memory.unmap(missing)
    try fixture.invalidate(missing)
    for page in 0..<64 where page != 40 {
      try memory.store(buffer + UInt64(page) * 4096, 0x1122_3344_5566_7788 as UInt64)
    }
    try fixture.qemu.fill(frame, count: 4096, with: 0x33)
    try fixture.expectRefused(sector: 512, [Piece(buffer, 64 * 4096, writable: true)], at: missing)
    try fixture.qemu.expectFilled(frame, with: 0x33)
    if backend == .sluice {
      for page in 0..<64 where page != 40 {
        #expect(try memory.load(buffer + UInt64(page) * 4096, as: UInt64.self) == 0x1122_3344_5566_7788, "page \(page)")
      }
    }
  }

  /// Where the status byte is when the data has no page either.
  enum StatusPlace: String, CaseIterable { case pageOfTheData, pageOfItsOwn, mapped }

  // QEMU's own device needs a reset after every one of these.
  @Test(
    "A request whose data have no page ends with its status; where that has no page either the device needs a reset, which mends it (R072, R088, R089, R090)",
    arguments: DiskBackend.translating.filter { $0 != .qemu }, StatusPlace.allCases)
  func holes(_ backend: DiskBackend, _ place: StatusPlace) throws {
    for format in RingFormat.allCases {
      let fixture = try Fixture(backend, format)
      let ring = fixture.driver.ring
      let header = try fixture.memory.allocate(16, .read)
      let data = fixture.memory.reserve(2)
      let status =
        switch place {
        case .pageOfTheData: data + 4095
        case .pageOfItsOwn: fixture.memory.reserve(1)
        case .mapped: try fixture.memory.allocate(1)
        }
      if place == .mapped { try fixture.memory.store(status, 0xff as UInt8) }
      _ = try ring.add(
        [Piece(header, 16, writable: false), Piece(data, 4095, writable: true), Piece(status, 1, writable: true)],
        indirect: nil)
      try fixture.driver.notifyAlways()
      var used: Used?
      let (function, qemu) = (fixture.disk.function, fixture.qemu)
      try qemu.wait(for: "end of a request with nowhere to go") { () throws(QTestError) in
        used = try ring.takeUsed()
        if used != nil || qemu.said.contains("vring error") { return true }
        return try function.status() & VirtioFunction.Status.needsReset != 0
      }
      if place == .mapped {
        #expect(used?.written ?? 2 <= 1)
        #expect(try fixture.memory.load(status, as: UInt8.self) == 1, "the status says: I/O error")
        try fixture.expectRead(sector: 7, into: [Piece(try fixture.memory.allocate(512), 512, writable: true)])
      } else {
        #expect(used == nil, "given back, it would pass for a success")
        let next = try DiskDriver(function, fixture.memory, format)
        let room = try fixture.memory.allocate(512)
        try next.expectRead(sector: 7, into: room, count: 512)
      }
    }
  }

  /// Where device addresses are: a table of so many bits, and the end of the range they come from.
  struct Place: Sendable, CustomTestStringConvertible {
    var bits: Int
    var top: UInt64
    var testDescription: String { "below 0x\(String(top, radix: 16)) of \(bits) bits" }
  }

  @Test(
    "Device addresses anywhere in the IOMMU's range work, above 4 GiB and to the last page (R059, R101, R136)",
    arguments: DiskBackend.translating,
    [
      Place(bits: 39, top: 1 << 39), Place(bits: 48, top: 1 << 48), Place(bits: 39, top: 0x2_0000_0000),
      Place(bits: 48, top: 0x1234_5678_9000),
      Place(bits: 39, top: 0x80_0000),
    ])
  func high(_ backend: DiskBackend, _ place: Place) throws {
    for format in RingFormat.allCases {
      let fixture = try Fixture(backend, format, size: 64, addressBits: place.bits, top: place.top)
      #expect(fixture.driver.ring.areas.descriptor == place.top - 4096, "the descriptor area ends with the range")
      let buffer = try fixture.memory.allocate(5 * 4096)
      try fixture.expectRead(sector: 77, into: [Piece(buffer + 512, 4 * 4096, writable: true)])
      #expect(try fixture.vtd.takeFaults().isEmpty)
    }
  }
}
