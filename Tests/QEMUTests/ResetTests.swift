import QTestKit
import Testing

@Suite("QEMU without a guest: reset and negotiation", .needsQEMU) struct ResetTests {
  @Test(
    "After a reset with requests in flight nothing of them reaches memory, and nothing faults (R060)",
    arguments: DiskBackend.translating, RingFormat.allCases)
  func inFlight(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(backend, format, size: 512) { $0.queueSize = 512 }
    let qemu = fixture.qemu
    let pages = 16
    let buffers = try (0..<100).map { _ in try fixture.memory.allocate(pages * 4096) }
    for round in 0..<3 {
      let driver =
        round == 0 ? fixture.driver : try DiskDriver(fixture.disk.function, fixture.memory, format, size: 512)
      for (index, buffer) in buffers.enumerated() {
        _ = try driver.add(DiskDriver.Request.read, sector: 8 * index, [Piece(buffer, pages * 4096, writable: true)])
      }
      try driver.notifyAlways()
      try fixture.disk.function.reset()
      #expect(try fixture.disk.function.queueAreas(0) == [0, 0, 0], "a reset queue has no areas")
      // The driver takes its memory back, and writes something else there.
      var frames: [UInt64] = []
      for buffer in buffers {
        for page in 0..<pages { frames.append(try fixture.memory.frame(of: buffer + UInt64(page) * 4096)) }
        try fixture.memory.unmap(buffer, pages: pages)
      }
      try fixture.vtd.invalidate(.domain(try #require(fixture.memory.table).domain))
      try fixture.invalidateDevice(0, order: 52)
      _ = try fixture.vtd.takeFaults()
      for frame in frames { try qemu.fill(frame, count: 4096, with: 0x77) }
      // Another driver comes and uses the device; meanwhile nothing may arrive from the time before.
      let later = try DiskDriver(fixture.disk.function, fixture.memory, format, size: 16)
      let other = try fixture.memory.allocate(4096)
      for sector in 0..<20 { try later.expectRead(sector: sector, into: other, count: 512) }
      for frame in frames { try qemu.expectFilled(frame, with: 0x77, "a page from before the reset") }
      #expect(try fixture.vtd.takeFaults().isEmpty)
      for (index, buffer) in buffers.enumerated() {
        try fixture.memory.map(buffer, to: Array(frames[index * pages..<(index + 1) * pages]))
      }
    }
  }

  @Test(
    "A back-end that offers no tables of descriptors keeps them from the guest, which is served without", .needsSluice,
    arguments: RingFormat.allCases, [["--indirect", "off"], ["--access-platform", "on"], []])
  func withoutTables(_ format: RingFormat, _ options: [String]) throws {
    let fixture = try Fixture(.sluice, format) { $0.serverArguments = options }
    #expect(try fixture.disk.function.offeredFeatures() & Feature.indirect == (options.isEmpty ? Feature.indirect : 0))
    #expect(fixture.driver.features & Feature.indirect == (options.isEmpty ? Feature.indirect : 0))
    let buffer = try fixture.memory.allocate(4096)
    try fixture.expectRead(
      sector: 8, into: [Piece(buffer, 1024, writable: true), Piece(buffer + 2048, 1024, writable: true)],
      indirect: options.isEmpty)
  }

  @Test(
    "A driver that does not take bit 33 is refused at FEATURES_OK, before and after one that did (R001, R002, R004, R007, R008, R015, R016, R017)",
    arguments: DiskBackend.translating)
  func refused(_ backend: DiskBackend) throws {
    let fixture = try Fixture(backend)
    let function = fixture.disk.function
    let offered = try function.offeredFeatures()
    #expect(offered & Feature.accessPlatform != 0, "(R001, R004)")
    #expect(offered & Feature.packed == 0, "the packed bit is not a consequence of bit 33 (R002)")
    for _ in 0..<3 {
      #expect(throws: QTestError.self) {
        try DiskDriver.negotiate(function, DiskDriver.usual & ~Feature.accessPlatform)
      }
      #expect(try function.status() & VirtioFunction.Status.featuresOK == 0)
      #expect(try function.offeredFeatures() == offered, "(R017)")
      let driver = try DiskDriver(function, fixture.memory)
      let buffer = try fixture.memory.allocate(512)
      try driver.expectRead(sector: 3, into: buffer, count: 512)
    }
  }

  @Test(
    "A driver that takes neither bit 32 nor bit 33 slips past QEMU, reads nothing it should not, and the next one is served (R009, R065)",
    arguments: DiskBackend.translating)
  func neither(_ backend: DiskBackend) throws {
    let fixture = try Fixture(backend)
    let function = fixture.disk.function
    let buffer = try fixture.memory.allocate(4096)
    // An address with a page behind it in guest memory, but none in the domain: what an untranslated access would
    // reach.
    let untranslated = try fixture.qemu.frames.take()
    try fixture.qemu.fill(untranslated, count: 4096, with: 0x66)
    let features = try DiskDriver.negotiate(function, Feature.segMax)
    #expect(features == Feature.segMax)
    let ring = try LiteralSplitRing(fixture.memory, size: 8, eventIndex: false)
    let driver = try DiskDriver(function, fixture.memory, queue: 0, ring: ring, features: features)
    try function.setStatus(0xf)
    _ = try driver.add(DiskDriver.Request.read, sector: 0, [Piece(untranslated, 4096, writable: true)])
    try driver.notifyAlways()
    try function.reset()
    let next = try DiskDriver(function, fixture.memory)
    try next.expectRead(sector: 9, into: buffer)
    try fixture.qemu.expectFilled(untranslated, with: 0x66, "a page outside the domain")
  }

  @Test(
    "A hundred drivers after one another get the same device", arguments: DiskBackend.translating, RingFormat.allCases)
  func sessions(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(backend, format)
    let buffer = try fixture.memory.allocate(4096)
    let start = ContinuousClock.now
    for round in 0..<100 {
      let driver = try DiskDriver(fixture.disk.function, fixture.memory, format, size: UInt16(8 << (round % 3)))
      let sector = round * 8
      try driver.expectRead(sector: sector, into: buffer)
    }
    #expect(ContinuousClock.now - start < .seconds(30), "over 200 a minute")
    #expect(try fixture.vtd.takeFaults().isEmpty)
  }

  @Test("One back-end serves one machine after another (R126)", .needsSluice, arguments: RingFormat.allCases)
  func machines(_ format: RingFormat) throws {
    let scratch = try Scratch()
    let image = try DiskImage(in: scratch)
    let server = try DiskServer(.sluice, image: image, in: scratch)
    for round in 0..<10 {
      let fixture = try Fixture(.sluice, format) { $0.running = (server, image) }
      try fixture.expectRead(sector: round * 8, into: [Piece(try fixture.memory.allocate(4096), 4096, writable: true)])
      fixture.qemu.stop()  // a machine that is killed, not one that says goodbye
    }
    #expect(server.program.isRunning)
    #expect(server.program.stop(), "a back-end without a machine ends at SIGTERM")
  }

  /// What a driver can write into the queue registers that no ring can be made of.
  enum Registers: String, CaseIterable {
    case oddSize, tooLarge, misalignedDescriptors, misalignedDriver, misalignedDevice, farAway, wrapsAround
  }

  @Test(
    "A queue that cannot be is refused alone: the next driver gets the disk (R041, R059, R091)",
    arguments: DiskBackend.translating, Registers.allCases)
  func impossibleQueue(_ backend: DiskBackend, _ wrong: Registers) throws {
    let fixture = try Fixture(backend) {
      $0.queueSize = 128
      if backend == .sluice { $0.serverArguments = ["--queue-size", "128"] }
    }
    let function = fixture.disk.function
    for _ in 0..<2 {
      _ = try DiskDriver.negotiate(function, DiskDriver.usual)
      let areas = try (0..<3).map { _ in try fixture.memory.allocate(4 * 4096) }
      var (size, descriptor, driver, device) = (16 as UInt16, areas[0], areas[1], areas[2])
      switch wrong {
      case .oddSize: size = 3
      case .tooLarge: size = 1024
      case .misalignedDescriptors: descriptor += 8
      case .misalignedDriver: driver += 1
      case .misalignedDevice: device += 2
      case .farAway: descriptor = 1 << 60
      case .wrapsAround: device = 0xffff_ffff_ffff_fff0
      }
      try function.enableQueue(0, size: size, descriptor: descriptor, driver: driver, device: device)
      try function.setStatus(0xf)
      try fixture.qemu.store(function.notificationAddress(0), UInt16(0))
    }
    let next = try DiskDriver(function, fixture.memory)
    let buffer = try fixture.memory.allocate(512)
    try next.expectRead(sector: 3, into: buffer, count: 512)
    if let server = fixture.disk.server { #expect(server.program.isRunning) }
  }

  @Test(
    "Rings that nobody mapped at DRIVER_OK stop nothing but themselves; a reset makes all well (R041, R071, R089, R091)",
    arguments: DiskBackend.translating, RingFormat.allCases)
  func unmappedRings(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(backend, format)
    let function = fixture.disk.function
    for holes in 1..<8 {
      _ = try DiskDriver.negotiate(function, DiskDriver.usual(format))
      let areas = try (0..<3).map {
        holes >> $0 & 1 != 0 ? fixture.memory.reserve(1) : try fixture.memory.allocate(4096)
      }
      try function.enableQueue(0, size: 16, descriptor: areas[0], driver: areas[1], device: areas[2])
      try function.setStatus(0xf)
      try fixture.qemu.store(function.notificationAddress(0), UInt16(0))
      _ = try function.status()
    }
    let driver = try DiskDriver(function, fixture.memory, format)
    let buffer = try fixture.memory.allocate(512)
    try driver.expectRead(sector: 3, into: buffer, count: 512)
    if let server = fixture.disk.server { #expect(server.program.isRunning) }
  }
}
