import DMA
import IOMMUInterface
import IOMMUs
import Testing
import VirtioTestKit

private let disk = VTdBench.disk
private let network = RequesterID(bus: 0, device: 5, function: 1)

@Suite("VT-d, programmed by its registers and tables")
struct VTdTests {
  @Test("The capability registers say what the options say")
  func capabilities() throws {
    let bench = try VTdBench(
      VTdOptions(
        addressWidth: 39, hasLargePages: false, hasCachingMode: true, hasDeviceIOTLB: false, hasPassThrough: false,
        faultRecords: 8))
    let capability = bench.unit.read(at: 0x08, width: 8)
    #expect(
      capability >> 7 & 1 == 1 && capability >> 8 & 31 == 2 && capability >> 16 & 63 == 38 && capability >> 34 & 15 == 0
        && capability >> 40 & 255 == 7)
    #expect(bench.unit.read(at: 0x10, width: 8) & 0b100_0110 == 0b10)
    let all = try VTdBench()
    #expect(all.unit.read(at: 0x08, width: 8) >> 8 & 31 == 6 && all.unit.read(at: 0x08, width: 8) >> 34 & 15 == 3)
    #expect(all.unit.read(at: 0x10, width: 8) & 0b100_0110 == 0b100_0110)
    // Two halves read as the whole does, and an unaligned read as nothing.
    #expect(all.unit.read(at: 0x0C, width: 4) == all.unit.read(at: 0x08, width: 8) >> 32)
    #expect(
      all.unit.read(at: 0x0A, width: 4) == 0 && all.unit.read(at: 1 << 40, width: 4) == 0
        && all.unit.read(at: -4, width: 4) == 0)
  }

  @Test(
    "Until it is turned on every address is physical, afterwards only what the tables map", arguments: [UInt64(1), 2])
  func translationOnAndOff(width: UInt64) throws {
    let bench = try VTdBench(width: width, enabled: false)
    #expect(bench.device.read(0x20_0000) == .success(0x5EED))
    bench.enable()
    #expect(bench.unit.read(at: 0x1C, width: 4) == 0xC000_0000)
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    #expect(
      bench.device.read(0x20_0000)
        == .failure(DMAFault(address: DMAAddress(0x20_0000), access: .read, reason: .unmapped)))
    bench.unit.write(0, at: 0x18, width: 4)
    #expect(bench.device.read(0x20_0000) == .success(0x5EED))
  }

  @Test(
    "Pages of 4 KiB, 2 MiB and 1 GiB lead where their entries say, from their first byte to their last",
    arguments: [1, 2])
  func largePages(level: Int) throws {
    let bench = try VTdBench()
    let size = UInt64(4096) << UInt64(9 * (level - 1))
    let address = UInt64(7) << 30
    bench.map(address, to: 0x80_0000, level: level)
    bench.store(1, at: 0x80_0000)
    bench.store(2, at: 0x80_0000 + size - 8)
    #expect(bench.device.read(address) == .success(1))
    #expect(bench.device.read(address + size - 8) == .success(2))
    #expect(faultReason(bench.device.read(address + size)) != nil)
    #expect(faultReason(bench.device.read(address - 8)) != nil)
  }

  @Test("An entry of 1 GiB covers all memory there is")
  func gigabytePage() throws {
    let bench = try VTdBench()
    bench.map(3 << 30, to: 0, level: 3)
    #expect(bench.device.read(3 << 30 + 0x20_0000) == .success(0x5EED))
    #expect(faultReason(bench.device.read(3 << 30 + 16 << 20)) == .unmapped)
  }

  @Test("A permission missing at any level is missing, and write-only memory cannot be read (R083, R084)")
  func permissions() throws {
    let bench = try VTdBench()
    bench.map(0x1000, to: 0x20_0000, permissions: 1)
    bench.map(0x2000, to: 0x20_0000, permissions: 2)
    #expect(bench.device.read(0x1000) == .success(0x5EED))
    #expect(
      bench.device.asksToWrite(0x1000) == DMAFault(address: DMAAddress(0x1000), access: .write, reason: .permission))
    #expect(bench.device.asksToWrite(0x2000) == nil)
    #expect(faultReason(bench.device.read(0x2000)) == .permission)
    // The first table's entry loses its write bit: everything below it is read-only then, once the driver says so.
    bench.store(bench.load(bench.table) & ~2, at: bench.table)
    bench.unit.write(1 << 63 | 1 << 60, at: 0x208, width: 8)
    #expect(bench.device.asksToWrite(0x2000)?.reason == .permission)
  }

  @Test(
    "What was translated stays until the driver invalidates it, by page, domain or all (R110)",
    arguments: [UInt64(1), 2, 3])
  func invalidationByRegister(granularity: UInt64) throws {
    let bench = try VTdBench()
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    bench.map(0x40_0000, to: 0x30_0000)
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    bench.unit.write(0x40_0000, at: 0x200, width: 8)
    bench.unit.write(1 << 63 | granularity << 60 | 1 << 32, at: 0x208, width: 8)
    let done = bench.unit.read(at: 0x208, width: 8)
    #expect(done >> 63 == 0 && done >> 57 & 3 == granularity)
    #expect(bench.device.read(0x40_0000) == .success(0xFEED))
  }

  @Test("An invalidation of another domain, or of other pages, is none of this one's")
  func foreignInvalidation() throws {
    let bench = try VTdBench()
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    bench.map(0x40_0000, to: 0x30_0000)
    bench.unit.write(1 << 63 | 2 << 60 | 9 << 32, at: 0x208, width: 8)
    bench.unit.write(0x50_0000, at: 0x200, width: 8)
    bench.unit.write(1 << 63 | 3 << 60 | 1 << 32, at: 0x208, width: 8)
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
  }

  @Test(
    "A context entry counts again when the context cache is invalidated: by source, domain or all",
    arguments: [UInt64(1), 2, 3])
  func contextInvalidation(granularity: UInt64) throws {
    let bench = try VTdBench()
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    bench.setContext(disk, table: 0, kind: 2)
    #expect(faultReason(bench.device.read(0x20_0000)) != nil)
    bench.unit.write(1 << 63 | granularity << 61 | UInt64(disk.rawValue) << 16 | 1, at: 0x28, width: 8)
    #expect(
      bench.unit.read(at: 0x28, width: 8) >> 63 == 0 && bench.unit.read(at: 0x28, width: 8) >> 59 & 3 == granularity)
    #expect(bench.device.read(0x20_0000) == .success(0x5EED))
  }

  @Test("A function mask leaves out the function's bits")
  func functionMask() throws {
    let bench = try VTdBench()
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    bench.setContext(disk, table: 0, kind: 2)
    let other = UInt64(disk.rawValue) + 6
    bench.unit.write(1 << 63 | 3 << 61 | other << 16 | 1, at: 0x28, width: 8)
    #expect(faultReason(bench.device.read(0x20_0000)) != nil)
    bench.unit.write(1 << 63 | 3 << 61 | 2 << 32 | other << 16 | 1, at: 0x28, width: 8)
    #expect(bench.device.read(0x20_0000) == .success(0x5EED))
  }

  @Test("Two requesters with tables of their own reach each their own pages by the same address (R077)")
  func twoDomains() throws {
    let bench = try VTdBench()
    var b = DeviceView(bench.unit.plug(network, bench.memory))
    let table = bench.page()
    bench.setContext(network, table: table, domain: 2)
    bench.map(0x40_0000, to: 0x30_0000, in: table)
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    #expect(b.read(0x40_0000) == .success(0xFEED))
  }

  @Test(
    "A requester that goes and another that comes at its number start from the tables, not from what was remembered (R066)"
  )
  func hotUnplug() throws {
    let bench = try VTdBench()
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    bench.unit.release(bench.endpoint)
    #expect(faultReason(bench.device.read(0x40_0000)) == .stopped)
    bench.setContext(disk, table: bench.page())
    var next = DeviceView(bench.unit.plug(disk, bench.memory))
    #expect(faultReason(next.read(0x40_0000)) == .unmapped)
  }

  @Test("A reset turns translation off and forgets")
  func reset() throws {
    let bench = try VTdBench()
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    bench.unit.reset()
    #expect(bench.unit.read(at: 0x1C, width: 4) == 0)
    #expect(bench.device.read(0x20_0000) == .success(0x5EED))
  }
}

@Suite("VT-d's faults")
struct VTdFaultTests {
  /// Each way in which tables can be wrong, the unit's reason for it, and an address that shows it.
  static let mistakes: [(name: String, reason: UInt64, address: UInt64, breakIt: @Sendable (VTdBench) -> Void)] = [
    ("no root entry", 1, 0x40_0000, { $0.store(0, at: $0.root + UInt64(disk.bus) * 16) }),
    (
      "no context entry", 2, 0x40_0000,
      { $0.store(0, at: ($0.load($0.root + UInt64(disk.bus) * 16) & ~0xFFF) + UInt64(disk.rawValue & 255) * 16) }
    ), ("a width that is none", 3, 0x40_0000, { $0.setContext(disk, table: $0.table, width: 5) }),
    ("a kind that is none", 3, 0x40_0000, { $0.setContext(disk, table: $0.table, kind: 3) }),
    ("an address past the tables' reach", 4, 1 << 48, { _ in }), ("nothing mapped", 6, 0x50_0000, { _ in }),
    ("a table outside memory", 7, 0x40_0000, { $0.setContext(disk, table: 1 << 40) }),
    ("a context table outside memory", 9, 0x40_0000, { $0.store(1 << 40 | 1, at: $0.root + UInt64(disk.bus) * 16) }),
    (
      "a root table outside memory", 8, 0x40_0000,
      {
        $0.unit.write(1 << 40, at: 0x20, width: 8)
        $0.unit.write(3 << 30, at: 0x18, width: 4)
      }
    ), ("a large page at the top", 12, 0x40_0000, { $0.store(0x20_0083, at: $0.table) }),
  ]

  @Test(
    "Each mistake in the tables is a refusal, with the reason in the first fault record (R092, R094)",
    arguments: mistakes.indices)
  func reasons(index: Int) throws {
    let bench = try VTdBench()
    let mistake = Self.mistakes[index]
    let address = mistake.address
    mistake.breakIt(bench)
    #expect(faultReason(bench.device.read(address + 0x18)) != nil, "\(mistake.name)")
    let high = bench.unit.read(at: 0x228, width: 8)
    #expect(high >> 32 & 255 == mistake.reason, "\(mistake.name)")
    #expect(high >> 63 == 1 && high >> 62 & 1 == 1 && high & 0xFFFF == UInt64(disk.rawValue))
    #expect(bench.unit.read(at: 0x220, width: 8) == address & ~0xFFF)
    #expect(bench.unit.read(at: 0x34, width: 4) == 2)
  }

  @Test("A fault interrupts once, where the driver said; masked it waits for the mask to go")
  func interrupts() throws {
    let bench = try VTdBench()
    bench.unit.write(0x41, at: 0x3C, width: 4)
    bench.unit.write(0x1_FEE0_0000, at: 0x40, width: 8)
    #expect(bench.device.asksToWrite(0x50_0000) != nil)
    #expect(bench.messages.all.isEmpty)
    #expect(bench.unit.read(at: 0x38, width: 4) == 0xC000_0000)
    bench.unit.write(0, at: 0x38, width: 4)
    #expect(bench.messages.all == [InterruptMessage(address: 0x1_FEE0_0000, data: 0x41)])
    #expect(bench.unit.read(at: 0x228, width: 8) >> 62 & 1 == 0)
    // Another while the first waits to be read: recorded, without another interrupt.
    #expect(faultReason(bench.device.read(0x60_0000)) != nil)
    #expect(bench.messages.all.count == 1)
    for record in [0x22C, 0x23C] { bench.unit.write(1 << 31, at: record, width: 4) }
    #expect(bench.unit.read(at: 0x34, width: 4) & 3 == 0)
    #expect(faultReason(bench.device.read(0x70_0000)) != nil)
    #expect(bench.messages.all.count == 2)
    bench.unit.write(1 << 31, at: 0x24C, width: 4)
    #expect(faultReason(bench.device.read(0x70_0000)) != nil)
    #expect(bench.messages.all.count == 3)
  }

  @Test("More faults than records are an overflow and nothing else, however many (R093)")
  func storm() throws {
    let bench = try VTdBench(VTdOptions(faultRecords: 2))
    for i in 0..<1000 { #expect(faultReason(bench.device.read(0x100_0000 + UInt64(i) << 12)) != nil) }
    #expect(bench.unit.read(at: 0x34, width: 4) == 3)
    #expect(bench.unit.read(at: 0x220, width: 8) == 0x100_0000 && bench.unit.read(at: 0x230, width: 8) == 0x100_1000)
    bench.unit.write(1, at: 0x34, width: 4)
    #expect(bench.unit.read(at: 0x34, width: 4) == 2)
  }

  @Test("A context entry that hides faults hides them from the driver, not from the device")
  func hiddenFaults() throws {
    let bench = try VTdBench()
    bench.setContext(disk, table: bench.table, hidesFaults: true)
    #expect(faultReason(bench.device.read(0x50_0000)) != nil)
    #expect(bench.unit.read(at: 0x34, width: 4) == 0)
  }

  @Test("While bus mastering is off nothing is reachable and the unit hears of nothing (R039)")
  func busMasterOff() throws {
    let bench = try VTdBench()
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
    bench.endpoint.setOpen(false)
    #expect(faultReason(bench.device.read(0x40_0000)) == .busMasterDisabled)
    #expect(bench.unit.read(at: 0x34, width: 4) == 0)
    bench.endpoint.setOpen(true)
    #expect(bench.device.read(0x40_0000) == .success(0x5EED))
  }
}
