import DMA
import DriverDMA
import IOMMUDrivers
import IOMMUInterface
import IOMMUs
import Testing
import VirtioTestKit

private let disk = RequesterID(bus: 1, device: 4, function: 1)
private let network = RequesterID(bus: 0, device: 5)

/// A unit's registers with an eye on them and a hand in them.
private final class WatchedUnit: RegisterWatch, RegisterAccess {
  let unit: AMDViUnit
  /// Commands that the unit was given, waits left out.
  var commands: [[UInt64]] = []
  private var tail: UInt64 = 0
  init(_ unit: AMDViUnit) { self.unit = unit }

  func read(at offset: Int, width: Int) -> UInt64 {
    reads += 1
    return replaced[offset] ?? unit.read(at: offset, width: width)
  }
  func write(_ value: UInt64, at offset: Int, width: Int) {
    if lost.contains(offset) { return }
    if offset == 0x2000 { tail = value }
    if offset == 0x2008 {
      let start = unit.read(at: 0x8, width: 8) & 0x000F_FFFF_FFFF_F000
      if tail != value { beforeTail?(start + tail) }
      while tail != value {
        let (low, high) = (unit.memory.word(start + tail) ?? 0, unit.memory.word(start + tail + 8) ?? 0)
        if low >> 60 != 1 { commands.append([low, high]) }
        tail = (tail + 16) % 4096
      }
    }
    unit.write(value, at: offset, width: width)
  }
}

private final class AMDViBench {
  let memory: GuestMemory
  let pages: GuestPages
  let unit: AMDViUnit
  let registers: WatchedUnit
  let driver: AMDViDriver
  let messages = MessageList()
  static let data: UInt64 = 32 << 20

  init(levels: Int = 6, tableBytes: UInt64 = 8 << 20, prepare: (WatchedUnit) -> Void = { _ in }) throws {
    memory = try GuestMemory(byteCount: 48 << 20)
    memory.numberPages(from: 8192, count: 4096)
    pages = GuestPages(memory, at: GuestAddress(1 << 20), byteCount: tableBytes)
    unit = AMDViUnit(memory, levels: levels, interrupt: { [messages] in messages.append($0) })
    registers = WatchedUnit(unit)
    prepare(registers)
    driver = try AMDViDriver(registers, pages: pages, buses: 2, wait: BoundedWait(attempts: 100))
  }

  func device(_ requester: RequesterID) -> DeviceView { DeviceView(unit.plug(requester, memory)) }
  /// A new domain with a requester in it, of a unit that translates if it is enabled.
  func domain(
    of requester: RequesterID, deviceIOTLB: Bool = false, enabled isEnabled: Bool = false
  ) throws -> AMDViDomain {
    let domain = try driver.makeDomain()
    try driver.attach(requester, to: domain, deviceIOTLB: deviceIOTLB)
    if isEnabled { try driver.enable() }
    return domain
  }

  /// The first two words of a requester's entry in the table that the unit was told.
  func entry(_ requester: RequesterID) -> (low: UInt64, high: UInt64) {
    let at = unit.read(at: 0, width: 8) & 0x000F_FFFF_FFFF_F000 + UInt64(requester.rawValue) * 32
    return (memory.word(at) ?? 0, memory.word(at + 8) ?? 0)
  }

  /// Where an address leads by the tables, level by level: guest address, page size, permissions.
  func page(_ requester: RequesterID, _ address: UInt64) -> [UInt64]? {
    let (low, _) = entry(requester)
    var level = low >> 9 & 7
    var entry = low
    while level > 0 {
      let index = address >> (12 + 9 * (level - 1)) & 511
      guard let next = memory.word(entry & 0x000F_FFFF_FFFF_F000 + index * 8), next & 1 == 1 else { return nil }
      entry = next
      if entry >> 9 & 7 == 0 { return [entry & 0x000F_FFFF_FFFF_F000, 4096 << (9 * (level - 1)), entry >> 61 & 3] }
      guard entry >> 9 & 7 == level - 1 else { return nil }
      level -= 1
    }
    return nil
  }
}

@Suite("The driver of AMD-Vi")
struct AMDViDriverTests {
  @Test(
    "Tables say what was mapped, as the specification draws them, in the largest pages that fit",
    arguments: [3, 4, 5, 6])
  func tables(levels: Int) throws {
    let bench = try AMDViBench()
    let domain = try bench.driver.makeDomain(levels: levels)
    try bench.driver.attach(disk, to: domain)
    #expect(
      bench.entry(disk).low & ~0x000F_FFFF_FFFF_F000 == 3 << 61 | UInt64(levels) << 9 | 3 && bench.entry(disk).high == 1
    )
    #expect(bench.entry(network).low == 3, "valid, and nothing is allowed")
    let base = domain.aperture.upperBound & ~(4 << 30 - 1)
    let (address, guest): (UInt64, UInt64) = (base + 1 << 30 - 4096, 5 << 30 - 4096)
    try domain.map(DMAAddress(address), to: GuestAddress(guest), count: 1 << 30 + 2 << 20 + 8192, permissions: .write)
    for (offset, size) in [(0, 4096), (4096, 1 << 30), (4096 + 1 << 30, 2 << 20), (4096 + 1 << 30 + 2 << 20, 4096)]
      as [(UInt64, UInt64)]
    {
      #expect(bench.page(disk, address + offset) == [guest + offset, size, 2])
    }
    #expect(bench.page(disk, address - 4096) == nil && bench.page(disk, address + 1 << 30 + 2 << 20 + 8192) == nil)
    #expect(throws: DMAError.self) { try domain.unmap(DMAAddress(address + 4096), count: 4096) }
    try domain.unmap(DMAAddress(address), count: 1 << 30 + 2 << 20 + 8192)
    #expect(bench.page(disk, address) == nil && bench.page(disk, address + 4096) == nil)
  }

  @Test(
    "One unmap forgets its pages, several at a flush the whole domain; a device with a cache of its own is told after the unit (R110, R131)"
  )
  func invalidation() throws {
    let bench = try AMDViBench()
    let domain = try bench.domain(of: disk, deviceIOTLB: true)
    try bench.driver.attach(network, to: domain)
    #expect(bench.entry(disk).high == 1 | 1 << 32 && bench.entry(network).high == 1)
    func commands(_ ranges: [(UInt64, UInt64)]) throws -> [[UInt64]] {
      for (address, count) in ranges {
        try domain.map(DMAAddress(address), to: GuestAddress(AMDViBench.data), count: count, permissions: .read)
      }
      bench.registers.commands = []
      for (address, count) in ranges { try domain.unmap(DMAAddress(address), count: count) }
      #expect(bench.registers.commands.isEmpty)
      try domain.flush()
      try domain.flush()
      return bench.registers.commands
    }
    let number = UInt64(disk.rawValue)
    let (pages, kept): (UInt64, UInt64) = (3 << 60 | 1 << 32, 4 << 60 | number << 32 | 1 << 24 | number)
    #expect(try commands([(0x5000, 4096)]) == [[pages, 0x5000], [kept, 0x5000]])
    #expect(try commands([(0x3000, 8192)]) == [[pages, 0x3001], [kept, 0x3001]])
    #expect(try commands([(0x20_0000, 2 << 20)]) == [[pages, 0x2F_F001], [kept, 0x2F_F001]])
    #expect(try commands([(0x5000, 4096), (0x7000, 4096)]) == [[pages, 0x7FFF_FFFF_FFFF_F003], [kept, 0x5001]])
    bench.registers.commands = []
    try bench.driver.detach(disk)
    #expect(
      bench.registers.commands.prefix(3) == [
        [2 << 60 | number, 0], [pages, 0x7FFF_FFFF_FFFF_F003], [kept, 0x7FFF_FFFF_FFFF_F001],
      ])
    #expect(try commands([(0x5000, 4096)]) == [[pages, 0x5000]])
  }

  @Test(
    "A requester reaches its domain, another one, everything or nothing, as it is attached, at once (R077, R082)",
    arguments: [false, true])
  func attaching(deviceIOTLB: Bool) throws {
    let bench = try AMDViBench()
    let (a, b) = (try bench.driver.makeDomain(), try bench.driver.makeDomain(levels: 3))
    var device = bench.device(disk)
    let guest = AMDViBench.data
    #expect(device.word(guest) == guest >> 12, "translation is off")
    try a.map(DMAAddress(0x5000), to: GuestAddress(guest + 4096), count: 4096, permissions: .read)
    try b.map(DMAAddress(0x5000), to: GuestAddress(guest + 8192), count: 4096, permissions: .read)
    try bench.driver.enable()
    #expect(bench.driver.isEnabled && device.word(guest) == nil && device.word(0x5000) == nil)
    try bench.driver.attach(disk, to: a, deviceIOTLB: deviceIOTLB)
    #expect(device.word(0x5000) == guest >> 12 + 1 && !device.canWrite(0x5000))
    try bench.driver.attach(disk, to: b, deviceIOTLB: deviceIOTLB)
    #expect(device.word(0x5000) == guest >> 12 + 2)
    try bench.driver.attach(disk, to: .passThrough)
    #expect(device.word(guest) == guest >> 12 && device.canWrite(guest))
    #expect(throws: UnitError.missing(.requester)) { try bench.driver.attach(RequesterID(bus: 2, device: 0), to: a) }
    try bench.driver.detach(disk)
    #expect(device.word(guest) == nil && device.word(0x5000) == nil)
    #expect(
      try bench.driver.takeEvents().events.last
        == AMDViEvent(code: 2, requester: disk, address: 0x5000, access: .read, isPresent: true))
    try bench.driver.attach(disk, to: .blocked(hidesFaults: true))
    #expect(device.word(guest) == nil)
    #expect(try bench.driver.takeEvents().events.isEmpty)
    try bench.driver.disable()
    #expect(!bench.driver.isEnabled && device.word(guest) == guest >> 12)
    #expect(throws: UnitError.missing(.addressWidth)) { _ = try bench.driver.makeDomain(levels: 7) }
    try bench.driver.remove(a)
    #expect(throws: UnitError.noDomain) { try bench.driver.attach(disk, to: a) }
    #expect(throws: DMAError.self) { try a.map(DMAAddress(0), to: GuestAddress(0), count: 4096, permissions: .read) }
  }

  @Test("A log that ran over is read, said to have lost some, and used again; an interrupt tells of the first event")
  func events() throws {
    let bench = try AMDViBench()
    bench.unit.setMessage(InterruptMessage(address: 0xFEE0_0000, data: 0x61))
    try bench.driver.enableEventInterrupt()
    try bench.driver.enable()
    var device = bench.device(disk)
    for round in 1...3 {
      for _ in 0..<(round == 2 ? 300 : 200) { #expect(device.word(0x7008) == nil) }
      let (events, hasLostSome) = try bench.driver.takeEvents()
      #expect(events.count == (round == 2 ? 255 : 200) && hasLostSome == (round == 2))
      #expect(
        events.allSatisfy {
          $0 == AMDViEvent(code: 2, requester: disk, address: 0x7008, access: .read, isPresent: true)
        })
      #expect(bench.messages.all.count == round)
    }
  }

  @Test(
    "What the unit lacks is named; a unit that is silent, or stops at a command, is given up on in time, and serves again"
  )
  func trouble() throws {
    #expect(throws: UnitError.missing(.addressWidth)) { _ = try AMDViBench { $0.replaced[0x30] = 3 << 10 | 1 << 6 } }
    #expect(throws: UnitError.missing(.invalidateAll)) { _ = try AMDViBench { $0.replaced[0x30] = 2 << 10 } }
    #expect(throws: UnitError.timeout(register: 0x18)) { _ = try AMDViBench { $0.lost = [0x18] } }
    #expect(throws: UnitError.timeout(register: 0x2008)) { _ = try AMDViBench { $0.lost = [0x2008] } }
    #expect(throws: UnitError.memory(.outOfMemory(16384))) { _ = try AMDViBench(tableBytes: 8192) }
    let bench = try AMDViBench()
    let domain = try bench.domain(of: disk, enabled: true)
    var device = bench.device(disk)
    let mapper = IOMMUMapper(domain, addresses: IOVAAllocator(aperture: 0x1000...0xFFFF), pages: bench.pages)
    for kind in 0..<2 {
      let range = try mapper.mapRange(GuestAddress(AMDViBench.data), count: 4096, .toDevice)
      #expect(device.word(range.address.rawValue) == AMDViBench.data >> 12)
      bench.registers.lost = kind == 0 ? [0x2008] : []
      bench.registers.beforeTail = kind == 1 ? { bench.memory.setWord($0, 15 << 60) } : nil
      bench.registers.reads = 0
      #expect(throws: DMAError.iommu(range.address)) { try mapper.unmapRange(range) }
      #expect(bench.registers.reads < 1000 && mapper.lostBytes == UInt64(kind + 1) * 4096)
      bench.registers.lost = []
      bench.registers.beforeTail = nil
    }
    for _ in 0..<400 {
      let range = try mapper.mapRange(GuestAddress(AMDViBench.data + 4096), count: 4096, .toDevice)
      #expect(device.word(range.address.rawValue) == AMDViBench.data >> 12 + 1)
      try mapper.unmapRange(range)
      #expect(device.word(range.address.rawValue) == nil)
    }
    #expect(try bench.driver.takeEvents().events.contains { $0.code == 5 })
  }
}
