import DMA
import DriverDMA
import Testing
import VirtioTestKit

@Suite("A domain of every unit")
struct EveryUnitTests {
  @Test(
    "What is mapped is reachable with its permissions, and its neighbours are not; after unmap and flush nothing is (R083, R084, R110)",
    arguments: UnitKind.allCases)
  func mapAndUnmap(kind: UnitKind) throws {
    let rig = try UnitRig(kind)
    let g = rig.granule
    let address = rig.aperture.lowerBound + 16 * g
    for (n, permissions) in [DMAPermissions.read, .write, .readWrite].enumerated() {
      let at = address + UInt64(n) * 4 * g
      try rig.domain.map(DMAAddress(at), to: GuestAddress(UnitRig.data + 2 * g), count: 2 * g, permissions: permissions)
      let (reads, writes) = (
        permissions.contains(.read) || [.sun4uSmall, .sun4uLarge].contains(kind), permissions.contains(.write)
      )
      #expect(rig.device.word(at) == (reads ? (UnitRig.data + 2 * g) >> 12 : nil))
      #expect(rig.device.word(at + 2 * g - 4096) == (reads ? (UnitRig.data + 4 * g) >> 12 - 1 : nil))
      #expect(rig.device.canWrite(at) == writes && rig.device.canWrite(at + g) == writes)
      #expect(rig.device.word(at - 8) == nil && rig.device.word(at + 2 * g) == nil)
      try rig.domain.unmap(DMAAddress(at), count: 2 * g)
      try rig.domain.flush()
      #expect(rig.device.word(at) == nil && rig.device.word(at + g) == nil && !rig.device.canWrite(at))
    }
  }

  @Test(
    "A second mapping of an address is refused and leaves the first as it was; so is an unmap of what is not all mapped",
    arguments: UnitKind.allCases)
  func overlap(kind: UnitKind) throws {
    let rig = try UnitRig(kind)
    let g = rig.granule
    let address = rig.aperture.lowerBound + 16 * g
    try rig.domain.map(DMAAddress(address + 2 * g), to: GuestAddress(UnitRig.data), count: g, permissions: .readWrite)
    #expect(throws: DMAError.self) {
      try rig.domain.map(
        DMAAddress(address), to: GuestAddress(UnitRig.data + 8 * g), count: 4 * g, permissions: .readWrite)
    }
    #expect(rig.device.word(address + 2 * g) == UnitRig.data >> 12)
    for page in [0, 1, 3] as [UInt64] { #expect(rig.device.word(address + page * g) == nil) }
    #expect(throws: DMAError.self) { try rig.domain.unmap(DMAAddress(address + g), count: 2 * g) }
    #expect(rig.device.word(address + 2 * g) == UnitRig.data >> 12)
    try rig.domain.map(
      DMAAddress(address), to: GuestAddress(UnitRig.data + 8 * g), count: 2 * g, permissions: .readWrite)
    #expect(rig.device.word(address + g) == (UnitRig.data + 9 * g) >> 12)
  }

  @Test(
    "What is no whole number of pages, outside the window, without permissions or past the end of memory is refused",
    arguments: UnitKind.allCases)
  func ranges(kind: UnitKind) throws {
    let rig = try UnitRig(kind)
    let g = rig.granule
    let good = rig.aperture.lowerBound + 16 * g
    let bad: [(UInt64, UInt64, UInt64, DMAPermissions)] = [
      (good + 8, 0, g, .read), (good, 8, g, .read), (good, 0, g - 8, .read), (good, 0, 0, .read), (good, 0, g, []),
      (rig.aperture.upperBound - g + 1, 0, 2 * g, .read), (rig.aperture.upperBound &+ 1, 0, g, .read),
      (.max - g + 1, 0, g, .read),
      (good, .max - g + 1, 2 * g, .read), (good, 0, .max - g + 1, .read),
    ]
    for (address, guest, count, permissions) in bad
    where address != 0 && !(address > .max - 2 * g && rig.aperture.upperBound == .max) {
      #expect(throws: DMAError.self, "\(address) \(guest) \(count)") {
        try rig.domain.map(DMAAddress(address), to: GuestAddress(guest), count: count, permissions: permissions)
      }
    }
    for (address, count) in [(good, 0), (good, UInt64.max - g + 1), (.max - g + 1, g), (good, g)] {
      #expect(throws: DMAError.self) { try rig.domain.unmap(DMAAddress(address), count: count) }
    }
  }

  @Test("Thousands of mappings at random are what a list of them says, at every step", arguments: UnitKind.allCases)
  func model(kind: UnitKind) throws {
    let rig = try UnitRig(kind)
    var random = SeededGenerator(UInt64(kind.rawValue.utf8.reduce(0) { $0 &* 31 &+ Int($1) } & 0xFFFF))
    let g = rig.granule
    // 4 MiB of addresses in granules, so that large pages come, and what was small becomes large.
    let base = (rig.aperture.lowerBound + (64 << 20) - 1) & ~((64 << 20) - 1)
    let slots = (4 << 20) / g
    struct Mapping {
      var first, count, guest: UInt64
      var permissions: DMAPermissions
    }
    var mappings: [Mapping] = []
    var maps = 0
    for step in 0..<2000 {
      if mappings.isEmpty || random.chance(3, in: 5) {
        let isLarge = random.chance(1, in: 20)
        let count = isLarge ? (2 << 20) / g : UInt64.random(in: 1...12, using: &random)
        let first =
          isLarge
          ? (random.chance(1, in: 2) ? 0 : (2 << 20) / g) : UInt64.random(in: 0...(slots - count), using: &random)
        let guest =
          isLarge
          ? UnitRig.data + UInt64.random(in: 0..<15, using: &random) << 21
          : UnitRig.data + UInt64.random(in: 0...((30 << 20) / g - 12), using: &random) * g
        let permissions = [DMAPermissions.read, .write, .readWrite][Int.random(in: 0..<3, using: &random)]
        let isFree = mappings.allSatisfy { $0.first + $0.count <= first || first + count <= $0.first }
        var wasTaken = false
        do throws(DMAError) {
          try rig.domain.map(
            DMAAddress(base + first * g), to: GuestAddress(guest), count: count * g, permissions: permissions)
        } catch { wasTaken = true }
        try #require(wasTaken == !isFree, "step \(step)")
        if isFree {
          mappings.append(Mapping(first: first, count: count, guest: guest, permissions: permissions))
          maps += 1
        }
      } else {
        let one = mappings.remove(at: Int.random(in: mappings.indices, using: &random))
        try rig.domain.unmap(DMAAddress(base + one.first * g), count: one.count * g)
        if random.chance(1, in: 3) {
          // Several at once: the flush has more than a range to forget.
          for _ in 0..<min(3, mappings.count) {
            let other = mappings.removeLast()
            try rig.domain.unmap(DMAAddress(base + other.first * g), count: other.count * g)
          }
        }
        try rig.domain.flush()
      }
      for _ in 0..<6 {
        let page = UInt64.random(in: 0..<(4 << 20) / 4096, using: &random)
        let address = base + page << 12
        let found = mappings.first { address >= base + $0.first * g && address < base + ($0.first + $0.count) * g }
        let canRead = found.map { $0.permissions.contains(.read) || g > 4096 } ?? false
        let expected = canRead ? found.map { ($0.guest + (address - base - $0.first * g)) >> 12 } : nil
        try #require(rig.device.word(address) == expected, "step \(step), page \(page)")
        try #require(
          rig.device.canWrite(address) == (found?.permissions.contains(.write) ?? false), "step \(step), page \(page)")
      }
    }
    #expect(maps > 400)
  }

  @Test(
    "Through the mapper a device reaches a buffer while it is mapped, at once no longer if strict, else after the flush (R110, R177)",
    arguments: UnitKind.allCases, [false, true])
  func mapper(kind: UnitKind, isDeferred: Bool) throws {
    let rig = try UnitRig(kind)
    let mapper = rig.makeMapper(isDeferred ? .deferred(batch: 64) : .strict)
    var random = SeededGenerator(3)
    var held: [MappedRange] = []
    for _ in 0..<3000 {
      if held.count < 40, random.chance(1, in: 2) {
        let count = UInt64.random(in: 8...30000, using: &random)
        let guest = UnitRig.data + UInt64.random(in: 0..<7000, using: &random) << 12
        let range = try mapper.mapRange(
          GuestAddress(guest), count: count, random.chance(1, in: 2) ? .toDevice : .fromDevice)
        if range.direction == .toDevice { try #require(rig.device.word(range.address.rawValue) == guest >> 12) }
        try #require(rig.device.canWrite(range.address.rawValue) == (range.direction == .fromDevice))
        held.append(range)
      } else if !held.isEmpty {
        let one = held.remove(at: Int.random(in: held.indices, using: &random))
        try mapper.unmapRange(one)
        if !isDeferred || kind.isStrict {
          try #require(rig.device.word(one.address.rawValue) == nil && !rig.device.canWrite(one.address.rawValue))
        }
      }
    }
    let addresses = held.map(\.address)
    for one in held { try mapper.unmapRange(one) }
    try mapper.flush()
    for address in addresses {
      #expect(rig.device.word(address.rawValue) == nil && !rig.device.canWrite(address.rawValue))
    }
    #expect(mapper.lostBytes == 0)
    let ring = try mapper.allocateRange(8192, alignment: 4096)
    #expect(rig.device.word(ring.address.rawValue) == 0 && rig.device.canWrite(ring.address.rawValue + 4096))
  }

  @Test(
    "A window that is full is an error at once, and room comes back",
    arguments: [UnitKind.tce, .sun4uSmall, .sun4uLarge])
  func fullWindow(kind: UnitKind) throws {
    let rig = try UnitRig(kind)
    let mapper = rig.makeMapper(.deferred(batch: 8))
    var ranges: [MappedRange] = []
    while true {
      do throws(DMAError) {
        ranges.append(try mapper.mapRange(GuestAddress(UnitRig.data), count: 16 << 20, .toDevice))
      } catch {
        #expect(error == .outOfAddresses(16 << 20))
        break
      }
    }
    #expect(!ranges.isEmpty)
    try mapper.unmapRange(ranges.removeLast())
    _ = try mapper.mapRange(GuestAddress(UnitRig.data), count: 16 << 20, .toDevice)
  }
}
