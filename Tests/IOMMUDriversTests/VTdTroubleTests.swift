import DMA
import DriverDMA
import IOMMUDrivers
import IOMMUInterface
import IOMMUs
import Testing
import VirtioTestKit

private let disk = RequesterID(bus: 0, device: 4)

@Suite("The driver of VT-d, with units that lack something or do not answer")
struct VTdTroubleTests {
  @Test("What a driver needs and the unit lacks is named")
  func capabilities() throws {
    let (capability, extended) = (VTdOptions().words.0, VTdOptions().words.1)
    let lacking: [(Int, UInt64, UnitError.Capability)] = [
      (0x08, capability & ~(31 << 8), .addressWidth), (0x10, extended & ~1, .coherentWalks),
      (0x10, extended & ~2, .queuedInvalidation),
      (0x08, capability | 1 << 4, .unbufferedWrites),
    ]
    for (offset, word, missing) in lacking {
      #expect(throws: UnitError.missing(missing)) { _ = try VTdBench { $0.replaced[offset] = word } }
    }
    let plain = try VTdBench(VTdOptions(addressWidth: 39, hasDeviceIOTLB: false, hasPassThrough: false))
    #expect(throws: UnitError.missing(.addressWidth)) { _ = try plain.driver.makeDomain(addressWidth: 48) }
    #expect(throws: UnitError.missing(.passThrough)) { try plain.driver.attach(disk, to: .passThrough) }
    let domain = try plain.driver.makeDomain()
    #expect(throws: UnitError.missing(.deviceIOTLB)) { try plain.driver.attach(disk, to: domain, deviceIOTLB: true) }
    // Sixteen numbers, of which two are reserved.
    let small = try VTdBench { $0.replaced[0x08] = capability & ~7 }
    let domains = try (0..<14).map { _ in try small.driver.makeDomain() }
    #expect(throws: UnitError.outOfDomains) { _ = try small.driver.makeDomain() }
    try small.driver.remove(domains[5])
    _ = try small.driver.makeDomain()
  }

  @Test("A width that only one side knows is left out: 48 bits of tables, 42 of addresses")
  func addressWidth() throws {
    let word = VTdOptions().words.0 & ~(63 << 16) | 41 << 16
    let bench = try VTdBench { $0.replaced[0x08] = word }
    let domain = try bench.driver.makeDomain()
    #expect(domain.addressWidth == 42)
    #expect(throws: DMAError.iommu(DMAAddress(1 << 42))) {
      try domain.map(DMAAddress(1 << 42), to: GuestAddress(0), count: 4096, permissions: .read)
    }
  }

  @Test("A unit that firmware had on is taken over: what its tables let through is over")
  func takenOver() throws {
    let bench = try VTdBench()
    let domain = try bench.domain(of: disk)
    try domain.map(DMAAddress(0x5000), to: GuestAddress(VTdBench.data), count: 4096, permissions: .read)
    try bench.driver.enable()
    var device = bench.device(disk)
    #expect(device.word(0x5000) == VTdBench.data >> 12)
    let pages = GuestPages(bench.memory, at: GuestAddress(16 << 20), byteCount: 1 << 20)
    let next = try VTdDriver(bench.unit, pages: pages)
    #expect(!next.isEnabled)
    try next.enable()
    #expect(device.word(0x5000) == nil)
    let mine = try next.makeDomain()
    try next.attach(disk, to: mine)
    try mine.map(DMAAddress(0x5000), to: GuestAddress(VTdBench.data + 4096), count: 4096, permissions: .read)
    #expect(device.word(0x5000) == VTdBench.data >> 12 + 1)
  }

  @Test("A unit that does nothing is given up on after as many looks as were agreed on")
  func silent() throws {
    #expect(throws: UnitError.timeout(register: 0x18)) { _ = try VTdBench { $0.lost = [0x18] } }
    #expect(throws: UnitError.timeout(register: 0x88)) { _ = try VTdBench { $0.lost = [0x88] } }
    let bench = try VTdBench()
    let domain = try bench.driver.makeDomain()
    bench.registers.lost = [0x18]
    #expect(throws: UnitError.timeout(register: 0x18)) { try bench.driver.enable() }
    bench.registers.lost = [0x88]
    try domain.map(DMAAddress(0x5000), to: GuestAddress(VTdBench.data), count: 4096, permissions: .read)
    try domain.unmap(DMAAddress(0x5000), count: 4096)
    bench.registers.reads = 0
    #expect(throws: DMAError.iommu(DMAAddress(0x5000))) { try domain.flush() }
    #expect(bench.registers.reads < 1000)
    // It answers again.
    bench.registers.lost = []
    try domain.map(DMAAddress(0x5000), to: GuestAddress(VTdBench.data), count: 4096, permissions: .read)
    try domain.unmap(DMAAddress(0x5000), count: 4096)
    try domain.flush()
  }

  @Test(
    "When the unit stops at a descriptor the flush fails, the mapper keeps the addresses from everybody, and the queue goes on afterwards"
  )
  func queueError() throws {
    let bench = try VTdBench()
    let domain = try bench.domain(of: disk, enabled: true)
    var device = bench.device(disk)
    let addresses = IOVAAllocator(aperture: 0x1000...0xFFFF)
    let mapper = IOMMUMapper(domain, addresses: addresses, pages: bench.pages)
    let range = try mapper.mapRange(GuestAddress(VTdBench.data), count: 4096, .toDevice)
    #expect(device.word(range.address.rawValue) == VTdBench.data >> 12)
    // Somebody writes over the descriptor.
    bench.registers.beforeTail = { bench.memory.setWord($0, 15) }
    #expect(throws: DMAError.iommu(range.address)) { try mapper.unmapRange(range) }
    #expect(mapper.lostBytes == 4096)
    bench.registers.beforeTail = nil
    #expect(bench.unit.read(at: 0x34, width: 4) & 0x70 == 0)
    for _ in 0..<20 {
      let other = try mapper.mapRange(GuestAddress(VTdBench.data + 4096), count: 4096, .toDevice)
      #expect(other.address != range.address && device.word(other.address.rawValue) == VTdBench.data >> 12 + 1)
      try mapper.unmapRange(other)
      #expect(device.word(other.address.rawValue) == nil)
    }
  }

  @Test("The queue goes round and round: thousands of invalidations, each done when the flush returns")
  func round() throws {
    let bench = try VTdBench()
    let domain = try bench.domain(of: disk, enabled: true)
    var device = bench.device(disk)
    for n in UInt64(0)..<2000 {
      try domain.map(DMAAddress(0x5000), to: GuestAddress(VTdBench.data + n << 12), count: 4096, permissions: .read)
      #expect(device.word(0x5000) == VTdBench.data >> 12 + n)
      try domain.unmap(DMAAddress(0x5000), count: 4096)
      try domain.flush()
    }
  }
}

extension VTdOptions {
  /// What a unit with these options says in its capability registers.
  fileprivate var words: (UInt64, UInt64) {
    let unit = VTdUnit(GuestMemory(), options: self, interrupt: { _ in })
    return (unit.read(at: 0x08, width: 8), unit.read(at: 0x10, width: 8))
  }
}
