import QTestKit
import Testing

/// A back-end with a ring format and size.
struct RingCase: Sendable, CustomTestStringConvertible {
  var backend: DiskBackend
  var format: RingFormat
  var size: UInt16
  var testDescription: String { "\(backend.rawValue), \(format.rawValue) ring of \(size)" }

  /// A split ring's size is a power of two; a packed ring's need not be.
  static let split: [UInt16] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
  static let packed: [UInt16] = [1, 2, 3, 4, 5, 6, 7, 9, 16, 31, 100, 128, 255, 256, 257, 1000, 1023, 1024]
  static let all = DiskBackend.translating.flatMap { backend in
    split.map { RingCase(backend: backend, format: .split, size: $0) }
      + packed.map { RingCase(backend: backend, format: .packed, size: $0) }
  }
}

@Suite("QEMU without a guest: rings", .needsQEMU) struct RingTests {
  /// Requests of one sector each until the ring has wrapped, as many at a time as fit.
  private func fill(_ fixture: Fixture, requests: Int, indirect: Bool, joined: Bool = false) throws {
    let driver = fixture.driver
    let perChain = indirect ? 1 : joined ? 2 : 3
    let batch = max(1, Int(driver.ring.size) / perChain)
    let stride = 1024  // a sector and, joined, its status byte
    let buffer = try fixture.memory.allocate(batch * stride)
    var sector = 0
    var left = requests
    while left > 0 {
      let count = min(batch, left)
      left -= count
      var ids: [UInt16] = []
      for index in 0..<count {
        let piece = Piece(buffer + UInt64(index * stride), joined ? 513 : 512, writable: true)
        ids.append(
          try driver.add(
            DiskDriver.Request.read, sector: (sector + index) % 2048, [piece], indirect: indirect, joined: joined))
      }
      try driver.notify()
      for (index, id) in ids.enumerated() {
        let completion = try driver.wait(id)
        try #require(completion == .init(status: 0, written: 513), "request \(sector + index)")
      }
      let bytes = try fixture.memory.read(buffer, count: count * stride)
      for index in 0..<count {
        try #require(
          Array(bytes[index * stride..<index * stride + 512]) == DiskImage.pattern((sector + index) % 2048, count: 512),
          "request \(sector + index)")
      }
      sector += count
    }
    #expect(driver.ring.free == Int(driver.ring.size))
    #expect(try fixture.vtd.takeFaults().isEmpty)
  }

  @Test(
    "Every ring size serves requests past its wrap, its areas scattered page by page (R040, R043, R045)",
    arguments: RingCase.all)
  func sizes(_ ring: RingCase) throws {
    let fixture = try Fixture(ring.backend, ring.format, size: ring.size) { $0.queueSize = 1024 }
    let areas = fixture.driver.ring.areas
    #expect(try fixture.disk.function.queueAreas(0) == [areas.descriptor, areas.driver, areas.device], "(R040)")
    // One descriptor: the request must go through a table. Two: the status byte joins the data.
    try fill(fixture, requests: 2 * Int(ring.size) + 3, indirect: ring.size == 1, joined: ring.size == 2)
  }

  // QEMU's own device looks a page up when it gets to it.
  @Test(
    "A hole in the second page of a ring area is found before a request is served (R042, R089)",
    arguments: DiskBackend.translating.filter { $0 != .qemu }, ["descriptor", "device"])
  func hole(_ backend: DiskBackend, _ area: String) throws {
    let fixture = try Fixture(backend) { $0.queueSize = 1024 }
    let features = try DiskDriver.negotiate(fixture.disk.function, DiskDriver.usual)
    let ring = try LiteralSplitRing(fixture.memory, size: 1024, eventIndex: features & Feature.eventIndex != 0)
    let page = (area == "descriptor" ? ring.areas.descriptor : ring.areas.device) + 4096
    try fixture.memory.unmap(page)
    try fixture.invalidate(page)
    _ = try fixture.vtd.takeFaults()
    let driver = try DiskDriver(fixture.disk.function, fixture.memory, queue: 0, ring: ring, features: features)
    try fixture.disk.function.setStatus(0xf)
    // The request itself does not need the missing page.
    let buffer = try fixture.memory.allocate(512)
    let id = try driver.add(DiskDriver.Request.read, sector: 3, [Piece(buffer, 512, writable: true)])
    try driver.notifyAlways()
    try fixture.qemu.wait(for: "fault at the hole") { () throws(QTestError) in
      try fixture.vtd.takeFaults().contains { $0.address == page }
    }
    #expect(try driver.poll(id) == nil)
    let next = try DiskDriver(fixture.disk.function, fixture.memory)
    try next.expectRead(sector: 3, into: buffer, count: 512)
  }

  @Test(
    "Indirect tables of scattered, read-only pages serve requests past the wrap (R029, R048, R049, R050)",
    arguments: DiskBackend.translating, RingFormat.allCases)
  func indirect(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(backend, format, size: 32)
    try fill(fixture, requests: 150, indirect: true)
  }

  @Test(
    "Without the event index the flags suppress notifications, and nothing is lost", arguments: DiskBackend.translating,
    RingFormat.allCases)
  func flags(_ backend: DiskBackend, _ format: RingFormat) throws {
    let fixture = try Fixture(
      backend, format, size: 8, wanted: DiskDriver.usual & ~Feature.eventIndex & ~Feature.indirect)
    #expect(fixture.driver.features & Feature.eventIndex == 0)
    try fill(fixture, requests: 64, indirect: false)
  }

  @Test("The 16-bit indices of a split ring go round past 65,536", arguments: DiskBackend.translating)
  func indexWrap(_ backend: DiskBackend) throws {
    let fixture = try Fixture(backend, .split, size: 1024) { $0.queueSize = 1024 }
    let qemu = fixture.qemu
    let memory = fixture.memory
    let areas = fixture.driver.ring.areas
    // 512 chains of two descriptors, written once: an unknown request type, and its status. They are made available
    // again and again.
    let header = try memory.allocate(16, .read)
    let statuses = try memory.allocate(512)
    try memory.write([0xff, 0xff, 0xff, 0x7f], at: header)
    let table = (0..<512).flatMap { chain in
      literalDescriptor(header, 16, flags: 1, next: UInt16(2 * chain + 1))
        + literalDescriptor(statuses + UInt64(chain), 1, flags: 2, next: 0)
    }
    try memory.write(table, at: areas.descriptor)
    var heads: [UInt8] = []
    for index in 0..<1024 { heads += [UInt8(truncatingIfNeeded: 2 * (index % 512)), UInt8((2 * (index % 512)) >> 8)] }
    try memory.write(heads, at: areas.driver + 4)
    let none = [UInt8](repeating: 0xff, count: 512)
    for round in 1...132 {
      try memory.write(none, at: statuses)
      let available = UInt16(truncatingIfNeeded: 512 * round)
      try memory.store(areas.driver + 2, available)
      try fixture.driver.notifyAlways()
      try qemu.wait(for: "used index \(available)") { () throws(QTestError) in
        try memory.load(areas.device + 2, as: UInt16.self) == available
      }
      let answers = try memory.read(statuses, count: 512)
      try #require(answers.allSatisfy { $0 == 2 }, "unsupported, all of them, round \(round)")
    }
    // In the last round every chain came back once.
    let used = try memory.read(areas.device + 4, count: 8 * 1024)
    var ids: Set<UInt16> = []
    for entry in 0..<512 { ids.insert(UInt16(used[8 * entry]) | UInt16(used[8 * entry + 1]) << 8) }
    #expect(ids == Set((0..<512).map { UInt16(2 * $0) }))
    #expect(try fixture.vtd.takeFaults().isEmpty)
  }
}
