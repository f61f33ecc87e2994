import DMA
import DriverDMA
import IOMMUDrivers
import IOMMUInterface
import IOMMUs
import Testing
import VirtioTestKit

private let disk = RequesterID(bus: 2, device: 4, function: 1)
private let network = RequesterID(bus: 0, device: 5)

@Suite("The driver of VT-d")
struct VTdDriverTests {
  @Test(
    "Tables say what was mapped, as the specification draws them, in the largest pages that fit", arguments: [39, 48],
    [true, false])
  func tables(width: Int, hasLargePages: Bool) throws {
    let bench = try VTdBench(VTdOptions(addressWidth: width, hasLargePages: hasLargePages))
    let domain = try bench.domain(of: disk)
    #expect(domain.aperture == 0...(1 << UInt64(width) - 1))
    let context = try #require(bench.walk.context(bench.root, bus: 2, deviceFunction: 4 << 3 | 1))
    #expect(context.low & 0xFFF == 1 && context.high & 7 == (width == 39 ? 1 : 2) && context.high >> 8 & 0xFFFF >= 2)
    // From 4 KiB before a gigabyte: a small page, one of 1 GiB, two of 2 MiB, and a small one.
    let (address, guest): (UInt64, UInt64) = (1 << 30 - 4096, 5 << 30 - 4096)
    try domain.map(DMAAddress(address), to: GuestAddress(guest), count: 1 << 30 + 4 << 20 + 8192, permissions: .read)
    let sizes = hasLargePages ? [4096, 1 << 30, 2 << 20, 2 << 20, 4096] : [UInt64](repeating: 4096, count: 5)
    let places: [UInt64] = [address, 1 << 30, 2 << 30, 2 << 30 + 2 << 20, 2 << 30 + 4 << 20]
    for (place, size) in zip(places, sizes) {
      #expect(
        bench.page(disk, place)
          == LiteralWalk.Page(guest: guest + (place - address), size: size, canRead: true, canWrite: false))
    }
    #expect(bench.page(disk, address - 1) == nil && bench.page(disk, 2 << 30 + 4 << 20 + 4096) == nil)
    // Guest and device address do not agree about the boundary: small pages.
    try domain.map(DMAAddress(4 << 30), to: GuestAddress(1 << 21 + 4096), count: 2 << 20, permissions: .write)
    #expect(
      bench.page(disk, 4 << 30) == LiteralWalk.Page(guest: 1 << 21 + 4096, size: 4096, canRead: false, canWrite: true))
    // A part of a large page cannot be taken away, the whole mapping can.
    if hasLargePages {
      #expect(throws: DMAError.iommu(DMAAddress(2 << 30))) { try domain.unmap(DMAAddress(2 << 30), count: 4096) }
    }
    try domain.unmap(DMAAddress(address), count: 1 << 30 + 4 << 20 + 8192)
    for place in places { #expect(bench.page(disk, place) == nil) }
  }

  @Test(
    "A large page takes the place of a table that became empty, and of none that is not; the table's memory comes back")
  func replacedTable() throws {
    let bench = try VTdBench()
    let domain = try bench.domain(of: disk, enabled: true)
    var device = bench.device(disk)
    let address = DMAAddress(2 << 20)
    try domain.map(address, to: GuestAddress(VTdBench.data + 4096), count: 4096, permissions: .readWrite)
    #expect(device.word(address.rawValue) == VTdBench.data >> 12 + 1)
    try domain.unmap(address, count: 4096)
    try domain.flush()
    let (before, free) = (domain.tablePages, bench.pages.freeBytes)
    try domain.map(address, to: GuestAddress(VTdBench.data), count: 2 << 20, permissions: .readWrite)
    #expect(device.word(address.rawValue) == VTdBench.data >> 12 && bench.page(disk, 2 << 20)?.size == 2 << 20)
    #expect(domain.tablePages == before - 1 && bench.pages.freeBytes == free + 4096)
    // What the unit knew of the table it was told to forget, tables included.
    #expect(bench.registers.descriptors.last?.low == 2 | 3 << 4 | 2 << 16)
    #expect(bench.registers.descriptors.last?.high == 2 << 20 | 9)
    try domain.map(DMAAddress(8 << 20 + 4096), to: GuestAddress(VTdBench.data), count: 4096, permissions: .read)
    try domain.map(DMAAddress(6 << 20), to: GuestAddress(VTdBench.data), count: 2 << 20, permissions: .read)
    #expect(throws: DMAError.self) {
      try domain.map(DMAAddress(8 << 20), to: GuestAddress(VTdBench.data), count: 2 << 20, permissions: .read)
    }
    #expect(bench.page(disk, 8 << 20) == nil && bench.page(disk, 8 << 20 + 4096) != nil)
  }

  @Test("One unmap forgets its pages, several at a flush the whole domain, once (R110)")
  func strictAndDeferred() throws {
    let bench = try VTdBench()
    let domain = try bench.domain(of: disk)
    let number = UInt64(2) << 16
    func descriptors(_ ranges: [(UInt64, UInt64)]) throws -> [[UInt64]] {
      for (address, count) in ranges {
        try domain.map(DMAAddress(address), to: GuestAddress(VTdBench.data), count: count, permissions: .read)
      }
      bench.registers.descriptors = []
      for (address, count) in ranges { try domain.unmap(DMAAddress(address), count: count) }
      #expect(bench.registers.descriptors.isEmpty)
      try domain.flush()
      try domain.flush()
      return bench.registers.descriptors.map { [$0.low, $0.high] }
    }
    // Order 0 at the page; two pages across a boundary of 16 KiB need the 32 KiB around; large ranges are named by
    // their power of two.
    #expect(try descriptors([(0x5000, 4096)]) == [[2 | 3 << 4 | number, 0x5000 | 1 << 6]])
    #expect(try descriptors([(0x3000, 8192)]) == [[2 | 3 << 4 | number, 0x0000 | 1 << 6 | 3]])
    #expect(try descriptors([(0x20_0000, 2 << 20)]) == [[2 | 3 << 4 | number, 0x20_0000 | 1 << 6 | 9]])
    // More than the unit can name.
    #expect(try descriptors([(0, 2 << 30)]) == [[2 | 2 << 4 | number, 0]])
    #expect(try descriptors([(0x5000, 4096), (0x8000, 4096), (0x1_0000, 65536)]) == [[2 | 2 << 4 | number, 0]])
  }

  @Test("A unit in caching mode hears of every mapping, another one of none")
  func cachingMode() throws {
    for mode in [true, false] {
      let bench = try VTdBench(VTdOptions(hasCachingMode: mode))
      let domain = try bench.driver.makeDomain()
      try bench.driver.attach(disk, to: domain)
      bench.registers.descriptors = []
      try domain.map(DMAAddress(0x5000), to: GuestAddress(VTdBench.data), count: 4096, permissions: .read)
      try domain.map(DMAAddress(0x6000), to: GuestAddress(VTdBench.data), count: 8192, permissions: .read)
      // The first brought tables, the second did not.
      let expected: [[UInt64]] = [[2 | 3 << 4 | 2 << 16, 0x5000], [2 | 3 << 4 | 2 << 16, 0x6000 | 1 << 6 | 1]]
      #expect(bench.registers.descriptors.map { [$0.low, $0.high] } == (mode ? expected : []))
    }
  }

  @Test("A requester reaches its domain, another one, everything or nothing, as it is attached, at once (R077, R082)")
  func attaching() throws {
    let bench = try VTdBench()
    let (a, b) = (try bench.driver.makeDomain(), try bench.driver.makeDomain(addressWidth: 39))
    var device = bench.device(disk)
    var other = bench.device(network)
    let guest = VTdBench.data
    #expect(device.word(guest) == guest >> 12, "translation is off")
    try a.map(DMAAddress(0x5000), to: GuestAddress(guest + 4096), count: 4096, permissions: .read)
    try b.map(DMAAddress(0x5000), to: GuestAddress(guest + 8192), count: 4096, permissions: .read)
    try bench.driver.enable()
    #expect(bench.driver.isEnabled && device.word(guest) == nil && device.word(0x5000) == nil)
    try bench.driver.attach(disk, to: a)
    try bench.driver.attach(network, to: b)
    #expect(device.word(0x5000) == guest >> 12 + 1 && other.word(0x5000) == guest >> 12 + 2)
    try bench.driver.attach(disk, to: .domain(b))
    #expect(device.word(0x5000) == guest >> 12 + 2)
    try bench.driver.attach(disk, to: .passThrough)
    #expect(device.word(guest) == guest >> 12 && device.canWrite(guest))
    let context = try #require(bench.walk.context(bench.root, bus: 2, deviceFunction: 4 << 3 | 1))
    #expect(context.low == 0b1001 && context.high == 1 << 8 | 2)
    try bench.driver.detach(disk)
    #expect(device.word(guest) == nil && device.word(0x5000) == nil && other.word(0x5000) == guest >> 12 + 2)
    try bench.driver.disable()
    #expect(!bench.driver.isEnabled && device.word(guest) == guest >> 12)
  }

  @Test("A domain can be ended when no endpoint is in it; its memory and number come again, and it maps no more")
  func endedDomain() throws {
    let bench = try VTdBench()
    try bench.driver.attach(disk, to: .passThrough)
    let free = bench.pages.freeBytes
    let domain = try bench.domain(of: disk)
    try domain.map(DMAAddress(0x5000), to: GuestAddress(VTdBench.data), count: 4096, permissions: .read)
    #expect(throws: UnitError.domainInUse) { try bench.driver.remove(domain) }
    try bench.driver.detach(disk)
    try bench.driver.remove(domain)
    #expect(throws: UnitError.noDomain) { try bench.driver.remove(domain) }
    #expect(throws: UnitError.noDomain) { try bench.driver.attach(disk, to: domain) }
    #expect(bench.pages.freeBytes == free)
    #expect(throws: DMAError.self) {
      try domain.map(DMAAddress(0x5000), to: GuestAddress(VTdBench.data), count: 4096, permissions: .read)
    }
    let (next, after) = (try bench.driver.makeDomain(), try bench.driver.makeDomain())
    try bench.driver.attach(disk, to: next)
    try bench.driver.attach(network, to: after)
    let numbers = [(UInt64(2), UInt64(4 << 3 | 1)), (0, 5 << 3)].compactMap {
      bench.walk.context(bench.root, bus: $0.0, deviceFunction: $0.1)?.high
    }
    #expect(numbers.map { $0 >> 8 } == [2, 3])
  }

  @Test("Faults are read out of the records and their room comes back; a message tells of the first")
  func faults() throws {
    let bench = try VTdBench(VTdOptions(faultRecords: 2))
    _ = try bench.domain(of: disk, enabled: true)
    bench.driver.setFaultMessage(InterruptMessage(address: 0x1_FEE0_0000, data: 0x41))
    var device = bench.device(disk)
    #expect(bench.driver.takeFaults().faults.isEmpty)
    for round in UInt64(1)...3 {
      for i in 0..<round { _ = i == 1 ? device.canWrite(0x7000 + i << 12) : device.word(0x7008 + i << 12) != nil }
      let (faults, hasLostSome) = bench.driver.takeFaults()
      let all = [
        VTdFault(requester: disk, page: DMAAddress(0x7000), access: .read, reason: 6),
        VTdFault(requester: disk, page: DMAAddress(0x8000), access: .write, reason: 5),
      ]
      #expect(faults == Array(all.prefix(Int(round))) && hasLostSome == (round == 3))
      #expect(
        bench.messages.all
          == [InterruptMessage](repeating: InterruptMessage(address: 0x1_FEE0_0000, data: 0x41), count: Int(round)))
    }
    try bench.driver.attach(disk, to: .blocked(hidesFaults: true))
    #expect(device.word(0x7000) == nil && bench.driver.takeFaults().faults.isEmpty)
    try bench.driver.detach(disk)
    #expect(device.word(0x7000) == nil)
    #expect(bench.driver.takeFaults().faults.first?.reason == 2)
  }

  @Test("Tables that memory has no room for are an error; nothing of the mapping stays, and what was mapped does")
  func exhaustion() throws {
    let bench = try VTdBench(VTdOptions(hasLargePages: false), tableBytes: 12 * 4096)
    let domain = try bench.domain(of: disk, enabled: true)
    var device = bench.device(disk)
    try domain.map(DMAAddress(0x5000), to: GuestAddress(VTdBench.data), count: 4096, permissions: .read)
    // Two tables are all that is left.
    #expect(throws: DMAError.outOfMemory(4096)) {
      try domain.map(DMAAddress(2 << 20 - 4096), to: GuestAddress(VTdBench.data), count: 12 << 20, permissions: .read)
    }
    #expect(device.word(0x5000) == VTdBench.data >> 12)
    for page in stride(from: UInt64(2 << 20 - 4096), to: 14 << 20, by: 4096) where bench.page(disk, page) != nil {
      Issue.record("\(page) is mapped")
    }
    try domain.map(DMAAddress(2 << 20 - 4096), to: GuestAddress(VTdBench.data), count: 2 << 20, permissions: .read)
    #expect(device.word(2 << 20) == VTdBench.data >> 12 + 1)
    #expect(throws: UnitError.memory(.outOfMemory(4096))) { for _ in 0..<20 { _ = try bench.driver.makeDomain() } }
  }
}
