import QTestKit
import Testing

@Suite("QEMU without a guest: permissions and ring pages", .enabled(if: QEMU.path != nil, Comment(rawValue: QEMU.absence)))
struct PermissionTests {
  @Test("A page mapped for reading only is not written: not one byte (R084)", arguments: DiskBackend.translating, RingFormat.allCases)
  func readOnlyBuffer(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(backend, format)
    let buffer = try fixture.memory.allocate(4096, .read)
    let frame = try fixture.memory.frame(of: buffer)
    try fixture.machine.qemu.fill(frame, count: 4096, with: 0x41)
    try fixture.expectRefused(sector: 8, [Piece(buffer, 4096, writable: true)], at: buffer)
    try expectSame(fixture.machine.qemu.read(frame, count: 4096), [UInt8](repeating: 0x41, count: 4096))
    // Read from, it serves.
    try fixture.memory.write(DiskImage.pattern(0, count: 4096, seed: 5), at: buffer)
    #expect(try fixture.driver.run(DiskDriver.Request.write, sector: 8, [Piece(buffer, 4096, writable: false)]).status == 0)
    try expectSame(fixture.disk.image.read(8, count: 4096), DiskImage.pattern(0, count: 4096, seed: 5))
  }

  @Test("A page mapped for writing only is not read from (R083, R085)", arguments: DiskBackend.translating, RingFormat.allCases)
  func writeOnlyBuffer(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(backend, format)
    let buffer = try fixture.memory.allocate(4096, .write)
    try fixture.expectRefused(DiskDriver.Request.write, sector: 8, [Piece(buffer, 4096, writable: false)], at: buffer)
    if backend == .sluice { try expectSame(fixture.disk.image.read(8, count: 4096), DiskImage.pattern(8, count: 4096)) }
    try fixture.expectRead(sector: 16, into: [Piece(buffer, 4096, writable: true)])
  }

  @Test("A device area mapped for writing only serves a split ring (R054, R086)", arguments: DiskBackend.translating.filter { $0 != .qemu })
  func writeOnlyUsedRing(_ backend: DiskBackend) throws {
    let fixture = try Fixture(backend)
    let features = try DiskDriver.negotiate(fixture.disk.function, DiskDriver.usual)
    let ring = try LiteralSplitRing(fixture.memory, size: 16, eventIndex: features & Feature.eventIndex != 0, usedAccess: .write)
    let driver = try DiskDriver(fixture.disk.function, fixture.memory, queue: 0, ring: ring, features: features)
    try fixture.disk.function.setStatus(0xf)
    let buffer = try fixture.memory.allocate(512, .write)
    for sector in 0..<40 {
      #expect(try driver.run(DiskDriver.Request.read, sector: sector, [Piece(buffer, 512, writable: true)]) == .init(status: 0, written: 513))
      try expectSame(fixture.memory.read(buffer, count: 512), DiskImage.pattern(sector, count: 512))
    }
    #expect(try fixture.vtd.takeFaults().isEmpty)
  }

  @Test("Ring pages that move while the driver holds still are found at their new place (R044, R112)", arguments: DiskBackend.translating, RingFormat.allCases)
  func moveRing(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(backend, format, size: 16)
    let memory = fixture.memory
    let areas = fixture.driver.ring.areas
    let buffer = try memory.allocate(4096)
    for round in 0..<9 {
      try fixture.expectRead(sector: round * 8, into: [Piece(buffer, 4096, writable: true)])
      let page = [areas.descriptor, areas.driver, areas.device][round % 3] & ~0xfff
      let old = try memory.frame(of: page)
      let new = try fixture.machine.qemu.frames.takeScattered(1)
      try fixture.machine.qemu.write(fixture.machine.qemu.read(old, count: 4096), at: new[0])
      try memory.map(page, to: new, page == areas.driver & ~0xfff || (format == .split && page == areas.descriptor) ? .read : .both)
      try fixture.invalidate(page)
      // Whoever still uses the old page reads nonsense, or writes where it is seen.
      try fixture.machine.qemu.fill(old, count: 4096, with: 0xcc)
      try fixture.expectRead(sector: round * 8 + 1, into: [Piece(buffer, 4096, writable: true)])
      try expectSame(fixture.machine.qemu.read(old, count: 4096), [UInt8](repeating: 0xcc, count: 4096), "the ring's old page, round \(round)")
    }
    #expect(try fixture.vtd.takeFaults().isEmpty)
  }
}
