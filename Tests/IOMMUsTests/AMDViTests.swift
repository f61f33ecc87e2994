import DMA
import IOMMUInterface
import IOMMUs
import Testing
import VirtioTestKit

private let disk = RequesterID(bus: 0, device: 3, function: 1)

/// An AMD-Vi unit with its driver's tables in guest memory, written bit by bit as the specification draws them.
private final class AMDViBench {
  let memory: GuestMemory
  let unit: AMDViUnit
  let messages = MessageList()
  let endpoint: EndpointSpace
  var device: DeviceView
  let deviceTable: UInt64 = 0x10_0000
  let commands: UInt64 = 0x11_0000
  let events: UInt64 = 0x11_1000
  private var nextPage: UInt64 = 0x12_0000

  init(levels: Int = 6) throws {
    memory = try GuestMemory(byteCount: 16 << 20)
    unit = AMDViUnit(memory, levels: levels, interrupt: { [messages] in messages.append($0) })
    endpoint = unit.plug(disk, memory)
    device = DeviceView(endpoint)
    store(0x5EED, at: 0x20_0000)
    store(0xFEED, at: 0x30_0000)
    // Two pages of entries: 256 requesters.
    unit.write(deviceTable | 1, at: 0x0, width: 8)
    unit.write(commands | 8 << 56, at: 0x8, width: 8)
    unit.write(events | 8 << 56, at: 0x10, width: 8)
    unit.setMessage(InterruptMessage(address: 0xFEE0_0000, data: 0x61))
  }

  func page() -> UInt64 {
    defer { nextPage += 4096 }
    return nextPage
  }
  func store(_ value: UInt64, at address: UInt64) { memory.setWord(address, value) }
  func load(_ address: UInt64) -> UInt64 { memory.word(address) ?? 0 }

  /// The disk's device table entry.
  func setEntry(_ low: UInt64, _ high: UInt64 = 7) {
    store(high, at: deviceTable + UInt64(disk.rawValue) * 32 + 8)
    store(low, at: deviceTable + UInt64(disk.rawValue) * 32)
  }
  /// Tables of so many levels for one address, the last entry given; their first table.
  func setPath(_ address: UInt64, levels: Int, to level: Int = 1, _ entry: UInt64, in first: UInt64? = nil) -> UInt64 {
    let root = first ?? page()
    var table = root
    for l in stride(from: levels, to: level, by: -1) {
      let at = table + (address >> UInt64(12 + 9 * (l - 1)) & 511) * 8
      if load(at) == 0 { store(page() | 3 << 61 | UInt64(l - 1) << 9 | 1, at: at) }
      table = load(at) & 0x000F_FFFF_FFFF_F000
    }
    store(entry, at: table + (address >> UInt64(12 + 9 * (level - 1)) & 511) * 8)
    return root
  }
  /// The disk translated by tables that map 0x40_0000 to 0x20_0000.
  func translate(levels: Int = 4, deviceIOTLB: Bool = false, _ control: UInt64 = 0x1005) -> UInt64 {
    let root = setPath(0x40_0000, levels: levels, 0x20_0000 | 3 << 61 | 1)
    setEntry(root | 3 << 61 | UInt64(levels) << 9 | 3, 7 | (deviceIOTLB ? 1 << 32 : 0))
    unit.write(control, at: 0x18, width: 8)
    return root
  }
  func submit(_ list: [(UInt64, UInt64)], from start: Int = 0) {
    for (i, one) in list.enumerated() {
      store(one.0, at: commands + UInt64(start + i) * 16)
      store(one.1, at: commands + UInt64(start + i) * 16 + 8)
    }
    unit.write(UInt64(start + list.count) * 16, at: 0x2008, width: 8)
  }
}

@Suite("AMD-Vi, programmed by its registers and tables")
struct AMDViTests {
  @Test(
    "Registers read back what they take, by halves too, and features say how many levels there are",
    arguments: [4, 5, 6])
  func registers(levels: Int) throws {
    let bench = try AMDViBench(levels: levels)
    #expect(bench.unit.read(at: 0x30, width: 8) == 1 << 6 | UInt64(levels - 4) << 10)
    bench.unit.write(.max, at: 0x0, width: 8)
    #expect(bench.unit.read(at: 0x0, width: 8) == 0x000F_FFFF_FFFF_F1FF)
    bench.unit.write(0x1234_5000, at: 0x0, width: 4)
    #expect(
      bench.unit.read(at: 0x0, width: 8) == 0x000F_FFFF_1234_5000 && bench.unit.read(at: 0x4, width: 4) == 0x000F_FFFF)
    for offset in [-8, 2, 4, 0x3FFC, 0x4000, 1 << 40] { #expect(bench.unit.read(at: offset, width: 8) == 0) }
  }

  @Test(
    "Off, or with an entry that is not valid, addresses are physical; of mode 0 they are as far as it allows; else as tables say",
    arguments: 1...6)
  func modes(levels: Int) throws {
    let bench = try AMDViBench()
    #expect(bench.device.read(0x20_0000) == .success(0x5EED))
    bench.unit.write(0x1005, at: 0x18, width: 8)
    #expect(bench.device.read(0x20_0000) == .success(0x5EED), "no entry")
    let devtab: (UInt64, UInt64) = (2 << 60 | UInt64(disk.rawValue), 0)
    bench.setEntry(1 << 61 | 3)
    bench.submit([devtab])
    #expect(
      bench.device.read(0x20_0000) == .success(0x5EED) && bench.device.asksToWrite(0x20_0000)?.reason == .permission)
    // With one level there are two megabytes of addresses.
    let address: UInt64 = levels == 1 ? 0x10_0000 : 0x40_0000
    let root = bench.setPath(address, levels: levels, 0x20_0000 | 3 << 61 | 1)
    bench.setEntry(root | 3 << 61 | UInt64(levels) << 9 | 3)
    bench.submit([devtab], from: 1)
    #expect(bench.device.read(address) == .success(0x5EED) && bench.device.asksToWrite(address) == nil)
    #expect(
      faultReason(bench.device.read(0x20_0000)) == .unmapped
        && faultReason(bench.device.read(address + 4096)) == .unmapped)
    if levels < 6 { #expect(faultReason(bench.device.read(1 << UInt64(12 + 9 * levels) + address)) == .unmapped) }
    bench.unit.write(0, at: 0x18, width: 8)
    #expect(bench.device.read(0x20_0000) == .success(0x5EED))
  }

  @Test(
    "Pages have their level's size, or one between that their address says; levels may be left out; what is reserved is refused"
  )
  func pageSizes() throws {
    let bench = try AMDViBench()
    let root = bench.translate()
    // 2 MiB at level 2, 32 KiB at level 1: address bits 12 and 13 set, 14 clear.
    _ = bench.setPath(0x4000_0000, levels: 4, to: 2, 0x20_0000 | 3 << 61 | 1, in: root)
    #expect(bench.device.read(0x4000_0000) == .success(0x5EED) && bench.device.read(0x4010_0000) == .success(0xFEED))
    for page in UInt64(0)..<8 {
      _ = bench.setPath(0x8000_0000 + page << 12, levels: 4, 0x20_0000 | 0x3000 | 7 << 9 | 3 << 61 | 1, in: root)
    }
    bench.store(0xABC, at: 0x20_7000)
    #expect(bench.device.read(0x8000_7000) == .success(0xABC) && bench.device.read(0x8000_0000) == .success(0x5EED))
    // From level 4 to level 1 at once: the address's bits between have to be zero.
    let lowest = bench.page()
    bench.store(lowest | 3 << 61 | 1 << 9 | 1, at: root + 5 * 8)
    bench.store(0x30_0000 | 3 << 61 | 1, at: lowest + 9 * 8)
    #expect(bench.device.read(5 << 39 + 9 << 12) == .success(0xFEED))
    #expect(faultReason(bench.device.read(5 << 39 + 1 << 21 + 9 << 12)) == .unmapped)
    // A level that does not go down, and a size that is not of its level.
    bench.store(lowest | 3 << 61 | 4 << 9 | 1, at: root + 6 * 8)
    bench.store(0x20_0000 | 7 << 9 | 3 << 61 | 1, at: root + 7 * 8)
    #expect(
      faultReason(bench.device.read(6 << 39)) == .unmapped && faultReason(bench.device.read(7 << 39)) == .unmapped)
  }

  static let commands: [(UInt64, UInt64)] = [
    (3 << 60 | 7 << 32, 0x40_0000), (3 << 60 | 7 << 32, 0x40_3000 | 1), (3 << 60 | 7 << 32, 0x7FFF_FFFF_FFFF_F003),
    (8 << 60, 0),
    (2 << 60 | UInt64(disk.rawValue), 0),
  ]

  @Test(
    "What was translated stays until a command names it, and a completion wait says when it is gone (R110)",
    arguments: commands.indices)
  func invalidation(index: Int) throws {
    let bench = try AMDViBench()
    let root = bench.translate()
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    _ = bench.setPath(0x40_0000, levels: 4, 0x30_0000 | 1 << 61 | 1, in: root)
    // Another domain, another page, another requester's own cache.
    bench.submit([
      (3 << 60 | 8 << 32, 0x40_0000), (3 << 60 | 7 << 32, 0x41_0000), (4 << 60 | UInt64(disk.rawValue), 0x40_0000),
      (2 << 60 | 99, 0),
    ])
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    bench.submit([Self.commands[index], (1 << 60 | 0x30_0100 | 1, 0xD0E)], from: 4)
    #expect(bench.load(0x30_0100) == 0xD0E && bench.unit.read(at: 0x2000, width: 8) == 96)
    #expect(
      bench.device.read(0x40_0000) == .success(0xFEED) && bench.device.asksToWrite(0x40_0000)?.reason == .permission)
  }

  @Test("A device with a cache of its own forgets when it is told so, and not when the unit is (R131)")
  func deviceIOTLB() throws {
    let bench = try AMDViBench()
    let root = bench.translate(deviceIOTLB: true)
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    _ = bench.setPath(0x40_0000, levels: 4, 0x30_0000 | 3 << 61 | 1, in: root)
    bench.submit([(3 << 60 | 7 << 32, 0x7FFF_FFFF_FFFF_F003), (8 << 60, 0)])
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    bench.submit([(4 << 60 | UInt64(disk.rawValue), 0x40_0000)], from: 2)
    #expect(bench.device.read(0x40_0000) == .success(0xFEED))
  }

  @Test("Each mistake in the tables is a refusal and an event that says why (R092, R094)")
  func events() throws {
    let bench = try AMDViBench()
    let root = bench.translate()
    _ = bench.setPath(0x50_0000, levels: 4, 0x20_0000 | 1 << 61 | 1, in: root)
    bench.store(1 << 45 | 3 << 61 | 3 << 9 | 1, at: root + 8)
    #expect(faultReason(bench.device.read(0x60_0018)) == .unmapped)
    #expect(bench.device.asksToWrite(0x50_0000)?.reason == .permission)
    #expect(faultReason(bench.device.read(1 << 39)) == .unmapped)
    let who = UInt64(disk.rawValue) | 7 << 32
    let expected: [(UInt64, UInt64)] = [
      (2 << 60 | who, 0x60_0018), (2 << 60 | 1 << 54 | 1 << 53 | 1 << 52 | who, 0x50_0000), (4 << 60 | who, 1 << 39),
    ]
    #expect(bench.unit.read(at: 0x2018, width: 8) == 48)
    for (n, event) in expected.enumerated() {
      #expect(
        bench.load(bench.events + UInt64(n) * 16) == event.0 && bench.load(bench.events + UInt64(n) * 16 + 8) == event.1
      )
    }
    // An entry of a mode that is none; one that hides its faults.
    bench.setEntry(root | 7 << 9 | 3)
    bench.submit([(2 << 60 | UInt64(disk.rawValue), 0)])
    #expect(faultReason(bench.device.read(0x40_0000)) == .unmapped && bench.load(bench.events + 48) >> 60 == 1)
    bench.setEntry(root | 4 << 9 | 3, 7 | 1 << 34)
    bench.submit([(2 << 60 | UInt64(disk.rawValue), 0)], from: 1)
    #expect(faultReason(bench.device.read(0x40_0000)) == .permission && bench.unit.read(at: 0x2018, width: 8) == 64)
    // A table that ends before the requester.
    bench.unit.write(bench.deviceTable, at: 0x0, width: 8)
    bench.store(0, at: bench.deviceTable + UInt64(disk.rawValue) * 32)
    var other = DeviceView(bench.unit.plug(RequesterID(bus: 1, device: 0), bench.memory))
    #expect(faultReason(other.read(0x40_0000)) == .unmapped && bench.load(bench.events + 64) == 1 << 60 | 0x100)
  }

  @Test(
    "An event interrupts once until the driver has cleared the bit; a full log says so and stands still, however many follow (R093)"
  )
  func eventLog() throws {
    let bench = try AMDViBench()
    _ = bench.translate(0x100D)
    for _ in 0..<3 { _ = bench.device.read(0x60_0000) }
    #expect(bench.messages.all == [InterruptMessage(address: 0xFEE0_0000, data: 0x61)])
    bench.unit.write(2, at: 0x2020, width: 8)
    #expect(bench.unit.read(at: 0x2020, width: 8) == 0x18)
    for _ in 0..<1000 { _ = bench.device.read(0x60_0000) }
    #expect(bench.messages.all.count == 2 && bench.unit.read(at: 0x2018, width: 8) == 255 * 16)
    #expect(bench.unit.read(at: 0x2020, width: 8) == 0x13)
    bench.unit.write(0x1009, at: 0x18, width: 8)
    bench.unit.write(3, at: 0x2020, width: 8)
    bench.unit.write(255 * 16, at: 0x2010, width: 8)
    bench.unit.write(0x100D, at: 0x18, width: 8)
    _ = bench.device.read(0x60_0000)
    #expect(bench.unit.read(at: 0x2018, width: 8) == 0 && bench.messages.all.count == 3)
  }

  @Test(
    "A command that is none stops the buffer where it stands until it was off; a buffer outside memory does, too (R091)",
    arguments: [UInt64(0), 9, 15])
  func illegalCommand(code: UInt64) throws {
    let bench = try AMDViBench()
    _ = bench.translate()
    bench.submit([(code << 60, 0), (1 << 60 | 0x30_0100 | 1, 7)])
    #expect(bench.unit.read(at: 0x2000, width: 8) == 0 && bench.unit.read(at: 0x2020, width: 8) & 0x10 == 0)
    #expect(
      bench.load(bench.events) == 5 << 60 && bench.load(bench.events + 8) == bench.commands
        && bench.load(0x30_0100) == 0)
    bench.store(8 << 60, at: bench.commands)
    bench.unit.write(5, at: 0x18, width: 8)
    bench.unit.write(0x1005, at: 0x18, width: 8)
    #expect(bench.load(0x30_0100) == 7)
    bench.unit.write(1 << 45 | 8 << 56, at: 0x8, width: 8)
    bench.submit([(8 << 60, 0)], from: 2)
    #expect(bench.load(bench.events + 16) >> 60 == 6 && bench.unit.read(at: 0x2020, width: 8) & 0x10 == 0)
  }

  @Test("Any sequence of register writes leaves a unit that answers (R091)")
  func randomWrites() throws {
    let bench = try AMDViBench()
    _ = bench.translate()
    var random = SystemRandomNumberGenerator()
    let offsets = [0x0, 0x8, 0x10, 0x18, 0x2000, 0x2008, 0x2010, 0x2018, 0x2020]
    for _ in 0..<20_000 {
      let offset = offsets.randomElement(using: &random)! + [0, 0, 4, 1].randomElement(using: &random)!
      bench.unit.write(
        random.next() & (Bool.random() ? .max : 0x0F00_0000_00FF_FFFF), at: offset,
        width: [1, 4, 8][Int.random(in: 0...2)])
      if Int.random(in: 0..<64) == 0 { _ = bench.device.read(UInt64.random(in: 0...0x50_0000, using: &random) & ~7) }
    }
    bench.unit.reset()
    bench.store(0x5EED, at: 0x20_0000)
    #expect(bench.device.read(0x20_0000) == .success(0x5EED))
    bench.unit.release(bench.endpoint)
    #expect(faultReason(bench.device.read(0x20_0000)) == .stopped)
  }
}
