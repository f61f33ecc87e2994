import QTestKit
import Testing

@Suite("QEMU without a guest: several devices, and who is translated", .needsQEMU) struct IsolationTests {
  @Test(
    "Two disks in two domains use the same addresses for different pages (R077)", arguments: DiskBackend.translating)
  func twoDomains(_ backend: DiskBackend) throws {
    var one = DiskOptions(backend)
    one.seed = 11
    var two = one
    two.seed = 22
    let machine = try DiskMachine([one, two])
    let vtd = try #require(machine.vtd)
    let memories = try machine.disks.map { try machine.domain(for: $0) }
    let drivers = try zip(machine.disks, memories).map { try DiskDriver($0.function, $1) }
    #expect(drivers[0].ring.areas == drivers[1].ring.areas, "the same addresses in both domains")
    let buffers = try memories.map { try $0.allocate(4096) }
    #expect(buffers[0] == buffers[1])
    for round in 0..<10 {
      for index in 0..<2 {
        let completion = try drivers[index].run(
          DiskDriver.Request.read, sector: round * 8, [Piece(buffers[index], 4096, writable: true)])
        #expect(completion == .init(status: 0, written: 4097))
      }
      for (index, seed) in [(0, 11 as UInt64), (1, 22)] {
        try expectSame(
          memories[index].read(buffers[index], count: 4096), DiskImage.pattern(round * 8, count: 4096, seed: seed),
          "disk \(index)")
      }
    }
    // What is taken from one stays with the other.
    let frame = try memories[0].frame(of: buffers[0])
    try memories[0].unmap(buffers[0])
    let table = try #require(memories[0].table)
    try vtd.invalidate(.pages(domain: table.domain, address: buffers[0], order: 0))
    try vtd.invalidate(.device(requester: machine.disks[0].function.address.requester, address: buffers[0], order: 0))
    try machine.qemu.fill(frame, count: 4096, with: 0x21)
    try drivers[1].expectRead(sector: 800, into: buffers[1], seed: 22)
    #expect(try vtd.takeFaults().isEmpty)
    let refused = try drivers[0].add(DiskDriver.Request.read, sector: 800, [Piece(buffers[0], 4096, writable: true)])
    try drivers[0].notify()
    try machine.qemu.wait(for: "fault") { () throws(QTestError) in try !vtd.takeFaults().isEmpty }
    try machine.qemu.wait(for: "end of the refused request") { () throws(QTestError) in
      try drivers[0].poll(refused) != nil
    }
    try machine.qemu.expectFilled(frame, with: 0x21)
  }

  @Test(
    "A disk without bit 33 beside one with it passes the IOMMU by, and neither notices the other (R006, R079)",
    arguments: DiskBackend.translating)
  func bypassBeside(_ backend: DiskBackend) throws {
    var bypass = DiskOptions(backend)
    bypass.platform = false
    bypass.seed = 33
    let machine = try DiskMachine([DiskOptions(backend), bypass])
    let vtd = try #require(machine.vtd)
    let translated = try machine.domain(for: machine.disks[0])
    let physical = machine.physical()
    var first = try DiskDriver(machine.disks[0].function, translated)
    let second = try DiskDriver(machine.disks[1].function, physical)
    #expect(first.features & Feature.accessPlatform != 0 && second.features & Feature.accessPlatform == 0)
    let buffer = try translated.allocate(4096)
    let plain = try physical.allocate(4096)
    for round in 0..<5 {
      try first.expectRead(sector: round * 8, into: buffer)
      try second.expectRead(sector: round * 8, into: plain, seed: 33)
      // The IOMMU forgets everything; the disk beside it does not care.
      try vtd.invalidate(.global)
      try vtd.invalidate(.device(requester: machine.disks[0].function.address.requester, address: 0, order: 52))
      try first.function.reset()
      #expect(try second.run(DiskDriver.Request.read, sector: round, [Piece(plain, 512, writable: true)]).status == 0)
      first = try DiskDriver(machine.disks[0].function, translated)
    }
    #expect(try vtd.takeFaults().isEmpty)
  }

  @Test("A disk moved to another domain reaches only that one (R114)", arguments: DiskBackend.translating)
  func switchDomain(_ backend: DiskBackend) throws {
    let fixture = try Fixture(backend)
    let buffer = try fixture.memory.allocate(4096)
    try fixture.expectRead(sector: 8, into: [Piece(buffer, 4096, writable: true)])
    let old = try fixture.memory.frame(of: buffer)
    try fixture.disk.function.reset()
    let other = try fixture.machine.domain(for: fixture.disk)
    try fixture.vtd.invalidate(.global)
    try fixture.invalidateDevice(0, order: 52)
    try fixture.qemu.fill(old, count: 4096, with: 0x19)
    let driver = try DiskDriver(fixture.disk.function, other)
    #expect(driver.ring.areas.descriptor == fixture.driver.ring.areas.descriptor, "the same addresses again")
    let same = try other.allocate(4096)
    #expect(same == buffer)
    try driver.expectRead(sector: 16, into: same)
    try fixture.qemu.expectFilled(old, with: 0x19, "the old domain's page")
    #expect(try fixture.vtd.takeFaults().isEmpty)
  }

  @Test(
    "With bit 33 addresses mean themselves behind a pass-through entry (R005), and with no IOMMU in the machine (R005, R129)",
    arguments: DiskBackend.translating.flatMap { backend in RingFormat.allCases.map { (backend, $0) } }, [true, false])
  func passThrough(_ what: (backend: DiskBackend, format: RingFormat), _ hasIOMMU: Bool) throws {
    let options = DiskOptions(what.backend) { $0.packed = what.format == .packed }
    let machine = try DiskMachine([options], addressBits: hasIOMMU ? 48 : nil)
    if hasIOMMU {
      let vtd = try #require(machine.vtd)
      try vtd.passThrough(machine.disks[0].function.address.requester, domain: 9)
      try vtd.invalidateContexts()
    }
    let memory = machine.physical()
    let driver = try DiskDriver(machine.disks[0].function, memory, what.format)
    #expect(driver.features & Feature.accessPlatform != 0)
    let buffer = try memory.allocate(1 << 16)
    try driver.expectRead(sector: 100, into: buffer, count: 1 << 16)
    if let vtd = machine.vtd { #expect(try vtd.takeFaults().isEmpty) }
  }

  @Test(
    "With bus mastering off a device reaches nothing, and serves the next driver once it is on (R039)",
    arguments: DiskBackend.translating)
  func busMaster(_ backend: DiskBackend) throws {
    let fixture = try Fixture(backend)
    let buffer = try fixture.memory.allocate(4096)
    try fixture.expectRead(sector: 0, into: [Piece(buffer, 4096, writable: true)])
    try fixture.machine.pci.setBusMaster(fixture.disk.function.address, false)
    let id = try fixture.driver.add(DiskDriver.Request.read, sector: 8, [Piece(buffer, 4096, writable: true)])
    try fixture.driver.notifyAlways()
    #expect(try fixture.driver.poll(id) == nil)
    try fixture.disk.function.reset()
    try expectSame(fixture.memory.read(buffer, count: 4096), DiskImage.pattern(0, count: 4096), "the buffer as it was")
    try fixture.machine.pci.setBusMaster(fixture.disk.function.address, true)
    let driver = try DiskDriver(fixture.disk.function, fixture.memory)
    try driver.expectRead(sector: 8, into: buffer)
  }

  @Test(
    "Feature words written while a queue runs change nothing about its addresses (R014)",
    arguments: DiskBackend.translating)
  func lateFeatures(_ backend: DiskBackend) throws {
    let fixture = try Fixture(backend)
    let buffer = try fixture.memory.allocate(4096)
    for (round, word) in [0, Feature.version1, Feature.version1 | Feature.packed].enumerated() {
      try fixture.disk.function.acceptFeatures(word)
      try fixture.expectRead(sector: round * 8, into: [Piece(buffer, 4096, writable: true)])
    }
    #expect(try fixture.vtd.takeFaults().isEmpty)
  }

  @Test(
    "Firmware uses a device with plain addresses; once the IOMMU is set up, the same addresses fault (R082)",
    arguments: DiskBackend.translating)
  func firmwareFirst(_ backend: DiskBackend) throws {
    let machine = try DiskMachine([DiskOptions(backend)])
    let vtd = try #require(machine.vtd)
    let disk = machine.disks[0]
    try vtd.disable()
    let plain = machine.physical()
    let firmware = try DiskDriver(disk.function, plain)
    let page = try plain.allocate(4096)
    try firmware.expectRead(sector: 8, into: page)
    try disk.function.reset()
    try vtd.enable()
    let memory = try machine.domain(for: disk)
    try vtd.invalidate(.global)
    try vtd.invalidate(.device(requester: disk.function.address.requester, address: 0, order: 52))
    let driver = try DiskDriver(disk.function, memory)
    let buffer = try memory.allocate(4096)
    try driver.expectRead(sector: 16, into: buffer)
    _ = try vtd.takeFaults()
    let id = try driver.add(DiskDriver.Request.read, sector: 24, [Piece(page, 4096, writable: true)])
    try driver.notify()
    try machine.qemu.wait(for: "fault at the firmware's page") { () throws(QTestError) in
      try vtd.takeFaults().contains { $0.address == page }
    }
    try machine.qemu.wait(for: "end of the refused request") { () throws(QTestError) in try driver.poll(id) != nil }
    try expectSame(machine.qemu.read(page, count: 4096), DiskImage.pattern(8, count: 4096), "the firmware's page")
  }
}
