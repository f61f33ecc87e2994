import QTestKit
import Testing

/// A machine with no IOMMU and one disk, whose driver takes every bit that it is offered; some of them are QEMU's own.
@Suite("QEMU without a guest: a plain machine, and a driver that takes what it is offered", .needsQEMU)
struct SituationTests {
  /// NOTIFY_ON_EMPTY and ANY_LAYOUT: QEMU offers them to a driver for every device, and passes what it takes on to the
  /// back-end.
  private static let forwarded: UInt64 = 1 << 24 | 1 << 27
  /// All but what changes the ring, and the bit by which a driver says that it is broken.
  private static let everything = ~(Feature.packed | 1 << 30 | Feature.eventIndex | Feature.indirect)

  private struct Plain {
    let machine: DiskMachine
    let memory: DeviceMemory
    let driver: DiskDriver
    var disk: DiskMachine.Disk { machine.disks[0] }
  }

  private func plain(_ backend: DiskBackend, queues: Int = 1, also: UInt64 = 0) throws -> Plain {
    let options = DiskOptions(backend) {
      $0.platform = false
      $0.queues = queues
    }
    let machine = try DiskMachine([options], addressBits: nil)
    let memory = machine.physical()
    return Plain(
      machine: machine, memory: memory,
      driver: try DiskDriver(machine.disks[0].function, memory, wanted: Self.everything | also))
  }

  private func expectWorks(_ plain: Plain, sector: Int, indirect: Bool = false, joined: Bool = false) throws {
    let (driver, memory) = (plain.driver, plain.memory)
    let buffer = try memory.allocate(1024)
    let data = DiskImage.pattern(0, count: 512, seed: UInt64(sector) + 99)
    try memory.write(data, at: buffer)
    #expect(
      try driver.run(
        DiskDriver.Request.write, sector: sector, [Piece(buffer, 512, writable: false)], indirect: indirect
      ).status == 0)
    try expectSame(plain.disk.image.read(sector, count: 512), data)
    try memory.write([UInt8](repeating: 0, count: 512), at: buffer)
    let id = try driver.add(
      DiskDriver.Request.read, sector: sector, [Piece(buffer, joined ? 513 : 512, writable: true)], indirect: indirect,
      joined: joined)
    try driver.notify()
    #expect(try driver.wait(id) == .init(status: 0, written: 513))
    try expectSame(memory.read(buffer, count: 512), data)
  }

  @Test(
    "A driver that takes every bit reads and writes, whatever QEMU passes on (R011)", arguments: DiskBackend.present)
  func everyBit(_ backend: DiskBackend) throws {
    let plain = try plain(backend)
    #expect(plain.driver.features & Self.forwarded == Self.forwarded || plain.driver.features & Self.forwarded == 0)
    for sector in 0..<20 { try expectWorks(plain, sector: sector, joined: sector % 2 == 1) }
  }

  @Test("Tables of two descriptors serve", arguments: DiskBackend.present)
  func twoDescriptors(_ backend: DiskBackend) throws {
    let plain = try plain(backend, also: Feature.indirect)
    for sector in 0..<20 { try expectWorks(plain, sector: sector, indirect: true, joined: true) }
  }

  @Test(
    "Ranges: one is carried out or refused by what is in it, and two are as good as their number allows",
    arguments: DiskBackend.present)
  func ranges(_ backend: DiskBackend) throws {
    let plain = try plain(backend)
    let (driver, function) = (plain.driver, plain.disk.function)
    try #require(driver.features & (Feature.discard | Feature.writeZeroes) == Feature.discard | Feature.writeZeroes)
    let room = try plain.memory.allocate(4096)
    /// {sector, count, flags} each.
    func run(_ type: UInt32, _ list: [(UInt64, UInt32, UInt32)]) throws -> UInt8 {
      for (i, range) in list.enumerated() {
        try plain.memory.store(room + UInt64(i) * 16, range.0)
        try plain.memory.store(room + UInt64(i) * 16 + 8, range.1)
        try plain.memory.store(room + UInt64(i) * 16 + 12, range.2)
      }
      return try driver.run(type, [Piece(room, 16 * list.count, writable: false)]).status
    }
    // max_discard_seg and max_write_zeroes_seg (§5.2.4).
    for (type, limit) in [(DiskDriver.Request.discard, 40), (DiskDriver.Request.writeZeroes, 52)] {
      #expect(try run(type, [(8, 8, 0)]) == 0)
      #expect(try run(type, [(0, .max, 0)]) == 1, "more sectors than there are")
      #expect(try run(type, [(2049, 1, 0)]) == 1, "behind the end")
      #expect(try run(type, [(0, 1, ~1)]) == 2, "unknown flags")
      let several = try function.configuration(limit, as: UInt32.self)
      let status = try run(type, [(16, 8, 0), (32, 8, 0)])
      #expect(several > 1 ? status == 0 : status != 0, "two ranges where \(several) may be: status \(status)")
    }
    try expectSame(plain.disk.image.read(8, count: 4096), [UInt8](repeating: 0, count: 4096), "zeroes were written")
    try expectWorks(plain, sector: 40)
  }

  @Test("Used buffers are told by MSI-X when the event index says so, and not before", arguments: DiskBackend.present)
  func vectors(_ backend: DiskBackend) throws {
    let machine = try DiskMachine([DiskOptions(backend) { $0.platform = false }], addressBits: nil)
    let (qemu, memory, function) = (machine.qemu, machine.physical(), machine.disks[0].function)
    // A message is four bytes written somewhere; here that is memory.
    let told = try memory.allocate(4096)
    try machine.pci.enableVector(function.address, address: told, data: 0x1234_5678)
    func isTold() throws(QTestError) -> Bool {
      guard try qemu.load(told, as: UInt32.self) == 0x1234_5678 else { return false }
      try qemu.store(told, 0 as UInt32)
      return true
    }
    let features = try DiskDriver.negotiate(function, Self.everything | Feature.eventIndex)
    try #require(features & Feature.eventIndex != 0)
    let ring = try LiteralSplitRing(memory, size: 16, eventIndex: true)
    let driver = try DiskDriver(function, memory, queue: 0, ring: ring, features: features, vector: 0)
    try function.setStatus(0xf)
    let buffer = try memory.allocate(512)
    func request() throws { try driver.expectRead(sector: 3, into: buffer, count: 512) }
    let event = ring.areas.driver + 4 + 2 * 16
    try request()
    try qemu.wait(for: "message of the first") { () throws(QTestError) in try isTold() }
    try memory.store(event, 3 as UInt16)  // the fourth
    try request()
    try request()
    #expect(try !isTold(), "not wanted yet")
    try request()
    try qemu.wait(for: "message of the fourth") { () throws(QTestError) in try isTold() }
  }

  @Test("Queues beyond the last one are not there, and asking for them is harmless", arguments: DiskBackend.present)
  func beyond(_ backend: DiskBackend) throws {
    let plain = try plain(backend, queues: 2)
    let count = try plain.disk.function.queueCount()
    #expect(count == 2)
    for index in [count, 3, 1023, 0xffff] {
      #expect(try plain.disk.function.maxQueueSize(index) == 0)
      try plain.disk.function.enableQueue(index, size: 16, descriptor: 0x10_0000, driver: 0x10_1000, device: 0x10_2000)
    }
    try expectWorks(plain, sector: 5)
  }
}
