import QTestKit
import Testing

@Suite("QEMU without a guest: permissions and ring pages", .needsQEMU) struct PermissionTests {
  /// What is done to a buffer before and after what its page does not allow.
  enum Order: String, CaseIterable, Sendable {
    case refusedFirst = "refused, allowed"
    /// VT-d forgets the page in between and the device does not: VT-d records a fault only of what it looks up in its
    /// table.
    case allowedFirst = "allowed, refused, allowed"
    /// VT-d knows the page, too.
    case allAtOnce = "allowed, refused, allowed at once"
  }

  // A front-end may answer a question about reading with an entry that allows writing, too: QEMU does. So the order
  // matters.
  @Test(
    "A page mapped for reading only is not written, whatever was done to it before: not one byte (R084, R118)",
    arguments: DiskBackend.translating, Order.allCases)
  func readOnlyBuffer(_ backend: DiskBackend, _ order: Order) throws {
    for format in RingFormat.allCases {
      let fixture = try Fixture(backend, format)
      let buffer = try fixture.memory.allocate(4096, .read)
      let frame = try fixture.memory.frame(of: buffer)
      if order != .refusedFirst { try fixture.expectWrite(sector: 8, from: buffer, seed: 5) }
      if order == .allowedFirst { try fixture.invalidateUnit(buffer) }
      try fixture.qemu.fill(frame, count: 4096, with: 0x41)
      try fixture.expectRefused(
        sector: 16, [Piece(buffer, 4096, writable: true)], at: buffer, recorded: order != .allAtOnce)
      try fixture.qemu.expectFilled(frame, with: 0x41)
      try fixture.expectWrite(sector: 8, from: buffer, seed: 6)
      #expect(try fixture.vtd.takeFaults().isEmpty)
    }
  }

  @Test(
    "A page mapped for writing only is not read from, whatever was done to it before (R083, R085, R118)",
    arguments: DiskBackend.translating, Order.allCases)
  func writeOnlyBuffer(_ backend: DiskBackend, _ order: Order) throws {
    for format in RingFormat.allCases {
      let fixture = try Fixture(backend, format)
      let buffer = try fixture.memory.allocate(4096, .write)
      if order != .refusedFirst { try fixture.expectRead(sector: 24, into: [Piece(buffer, 4096, writable: true)]) }
      if order == .allowedFirst { try fixture.invalidateUnit(buffer) }
      try fixture.expectRefused(
        DiskDriver.Request.write, sector: 8, [Piece(buffer, 4096, writable: false)], at: buffer,
        recorded: order != .allAtOnce)
      if backend == .sluice {
        try expectSame(fixture.disk.image.read(8, count: 4096), DiskImage.pattern(8, count: 4096))
      }
      try fixture.expectRead(sector: 16, into: [Piece(buffer, 4096, writable: true)])
      #expect(try fixture.vtd.takeFaults().isEmpty)
    }
  }

  @Test(
    "A page mapped both ways serves both, in both orders, without a fault (R118)", arguments: DiskBackend.translating)
  func bothWays(_ backend: DiskBackend) throws {
    for readFirst in [true, false] {
      let fixture = try Fixture(backend)
      let buffer = try fixture.memory.allocate(4096, .both)
      for turn in 0..<4 {
        if (turn % 2 == 0) == readFirst {
          try fixture.expectRead(sector: 24, into: [Piece(buffer, 4096, writable: true)])
        } else {
          try fixture.expectWrite(sector: 8, from: buffer, seed: UInt64(turn))
        }
      }
      #expect(try fixture.vtd.takeFaults().isEmpty)
    }
  }

  @Test("A page that loses a permission loses it for the device, too (R084, R110)", arguments: DiskBackend.translating)
  func permissionTaken(_ backend: DiskBackend) throws {
    let fixture = try Fixture(backend)
    let buffer = try fixture.memory.allocate(4096, .both)
    let frame = try fixture.memory.frame(of: buffer)
    try fixture.expectRead(sector: 24, into: [Piece(buffer, 4096, writable: true)])
    try fixture.memory.map(buffer, to: [frame], .read)
    try fixture.invalidate(buffer)
    try fixture.expectWrite(sector: 8, from: buffer, seed: 3)
    try fixture.invalidateUnit(buffer)
    try fixture.qemu.fill(frame, count: 4096, with: 0x41)
    try fixture.expectRefused(sector: 16, [Piece(buffer, 4096, writable: true)], at: buffer)
    try fixture.qemu.expectFilled(frame, with: 0x41)
  }

  @Test(
    "A device area mapped for writing only serves a split ring (R054, R086)",
    arguments: DiskBackend.translating.filter { $0 != .qemu })
  func writeOnlyUsedRing(_ backend: DiskBackend) throws {
    let fixture = try Fixture(backend)
    let features = try DiskDriver.negotiate(fixture.disk.function, DiskDriver.usual)
    let ring = try LiteralSplitRing(
      fixture.memory, size: 16, eventIndex: features & Feature.eventIndex != 0, usedAccess: .write)
    let driver = try DiskDriver(fixture.disk.function, fixture.memory, queue: 0, ring: ring, features: features)
    try fixture.disk.function.setStatus(0xf)
    let buffer = try fixture.memory.allocate(512, .write)
    for sector in 0..<40 { try driver.expectRead(sector: sector, into: buffer, count: 512) }
    #expect(try fixture.vtd.takeFaults().isEmpty)
  }

  @Test(
    "Ring pages that move while the driver holds still are found at their new place (R044, R112)",
    arguments: DiskBackend.translating, RingFormat.allCases)
  func moveRing(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(backend, format, size: 16)
    let memory = fixture.memory
    let areas = fixture.driver.ring.areas
    let buffer = try memory.allocate(4096)
    for round in 0..<9 {
      try fixture.expectRead(sector: round * 8, into: [Piece(buffer, 4096, writable: true)])
      let page = [areas.descriptor, areas.driver, areas.device][round % 3] & ~0xfff
      let old = try memory.frame(of: page)
      let new = try fixture.qemu.frames.takeScattered(1)
      try fixture.qemu.write(fixture.qemu.read(old, count: 4096), at: new[0])
      try memory.map(
        page, to: new, page == areas.driver & ~0xfff || (format == .split && page == areas.descriptor) ? .read : .both)
      try fixture.invalidate(page)
      // A device that still uses the old page reads nonsense, or writes where it is seen.
      try fixture.qemu.fill(old, count: 4096, with: 0xcc)
      try fixture.expectRead(sector: round * 8 + 1, into: [Piece(buffer, 4096, writable: true)])
      try fixture.qemu.expectFilled(old, with: 0xcc, "the ring's old page, round \(round)")
    }
    #expect(try fixture.vtd.takeFaults().isEmpty)
  }
}
