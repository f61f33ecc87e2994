import QTestKit
import Testing

@Suite("QEMU without a guest: map, read, unmap, read, remap, read", .needsQEMU) struct MapUnmapTests {
  @Test("A disk with no IOMMU anywhere is read and written (R006)", arguments: DiskBackend.present, RingFormat.allCases)
  func physical(_ backend: DiskBackend, _ format: RingFormat) throws {
    guard backend != .storageDaemon || format == .split else { return }  // it offers no packed ring
    let options = DiskOptions(backend) {
      $0.platform = false
      $0.packed = format == .packed
    }
    let machine = try DiskMachine([options], addressBits: nil)
    let disk = machine.disks[0]
    let memory = machine.physical()
    let driver = try DiskDriver(disk.function, memory, format)
    #expect(try disk.function.deviceType() == 2)
    #expect(driver.features & Feature.accessPlatform == 0)
    let buffer = try memory.allocate(4096)
    try driver.expectRead(sector: 8, into: buffer)
    let bytes = DiskImage.pattern(0, count: 4096, seed: 7)
    try memory.write(bytes, at: buffer)
    #expect(try driver.run(DiskDriver.Request.write, sector: 16, [Piece(buffer, 4096, writable: false)]).status == 0)
    try expectSame(disk.image.read(16, count: 4096), bytes)
  }

  @Test(
    "map, read, unmap, read, remap, read: what is not mapped is not touched (R046, R061, R110, R130)",
    arguments: DiskBackend.translating, RingFormat.allCases)
  func mapUnmapRemap(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(backend, format)
    let memory = fixture.memory
    let buffer = try memory.allocate(4096)
    let first = try memory.frame(of: buffer)
    let piece = Piece(buffer, 4096, writable: true)
    try fixture.expectRead(sector: 8, into: [piece])
    #expect(try fixture.vtd.takeFaults().isEmpty)

    try memory.unmap(buffer)
    try fixture.invalidate(buffer)
    try fixture.qemu.fill(first, count: 4096, with: 0x5a)
    let alive = try fixture.expectRefused(sector: 16, [piece], at: buffer)
    try fixture.qemu.expectFilled(first, with: 0x5a, "the unmapped page")
    #expect(alive, "a fault of one request leaves the queue running (R090)")

    let second = try fixture.qemu.frames.takeScattered(1)
    try memory.map(buffer, to: second)
    try fixture.invalidate(buffer)
    try fixture.expectRead(sector: 24, into: [piece])
    try fixture.qemu.expectFilled(first, with: 0x5a, "the page of the first mapping")
    #expect(try fixture.vtd.takeFaults().isEmpty)
  }

  @Test(
    "A write from a page that is not mapped leaves the disk as it was (R083)", arguments: DiskBackend.translating,
    RingFormat.allCases)
  func writeUnmapped(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(backend, format)
    let good = try fixture.memory.allocate(4096)
    let hole = fixture.memory.reserve(1)
    let pieces = [Piece(good, 4096, writable: false), Piece(hole, 4096, writable: false)]
    try fixture.expectRefused(DiskDriver.Request.write, sector: 64, pieces, at: hole)
    if backend == .sluice {
      // The whole chain is resolved before a byte moves (R087). QEMU reads what it cannot reach as it pleases.
      try expectSame(fixture.disk.image.read(64, count: 8192), DiskImage.pattern(64, count: 8192))
    }
    try fixture.expectRead(sector: 0, into: [Piece(try fixture.memory.allocate(512), 512, writable: true)])
  }

  /// Every way a guest has to say "forget it".
  enum Way: String, CaseIterable { case page, domain, global, registerPage, registerGlobal }

  @Test(
    "A remapped page is seen at its new place after every kind of invalidation (R044, R110)",
    arguments: DiskBackend.translating, Way.allCases)
  func remap(_ backend: DiskBackend, _ way: Way) throws {
    // The registers cannot reach a device's own cache; there QEMU translates for the back-end, and forgets to for the
    // global flush.
    let byRegister = way == .registerPage || way == .registerGlobal
    if backend != .qemu, way == .registerGlobal { return }
    let fixture = try Fixture(backend, queuedInvalidation: !byRegister) { $0.ats = !byRegister }
    #expect(fixture.disk.hasATS == !byRegister)
    let buffer = try fixture.memory.allocate(4096)
    let piece = Piece(buffer, 4096, writable: true)
    try fixture.expectRead(sector: 8, into: [piece])
    let domain = try #require(fixture.memory.table).domain
    for round in 1...8 {
      let old = try fixture.memory.frame(of: buffer)
      try fixture.memory.map(buffer, to: fixture.qemu.frames.takeScattered(1))
      switch way {
      case .page: try fixture.invalidate(buffer)
      // A device with ATS gets an invalidation of its own; a flush of the whole domain reaches it as one over all
      // addresses.
      case .domain:
        try fixture.vtd.invalidate(.domain(domain))
        try fixture.invalidateDevice(0, order: 52)
      case .global:
        try fixture.vtd.invalidate(.global)
        try fixture.invalidateDevice(0, order: 52)
      case .registerPage: try fixture.vtd.invalidate(.immediatePage(domain: domain, address: buffer))
      case .registerGlobal: try fixture.vtd.invalidate(.immediateGlobal)
      }
      try fixture.qemu.fill(old, count: 4096, with: 0xa5)
      try fixture.expectRead(sector: 8 * round, into: [piece])
      try fixture.qemu.expectFilled(old, with: 0xa5, "the old page, round \(round)")
    }
    #expect(try fixture.vtd.takeFaults().isEmpty)
  }
}
