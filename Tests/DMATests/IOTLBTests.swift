import Testing
import VirtioTestKit

@testable import DMA

/// A queue's cache over spaces of every kind, against byte-by-byte look-ups.
@Suite("IOTLB") struct IOTLBTests {
  @Test(
    "Random look-ups through scattered pages yield the bytes that are mapped there, run for run (R046, R047, R119)",
    arguments: [UInt64(4096), 256, 64], [false, true])
  func randomLookUps(_ granule: UInt64, _ table: Bool) throws {
    let size = 1 << 20
    let memory = try GuestMemory(byteCount: size)
    var random = SeededGenerator(granule)
    let contents = (0..<size).map { _ in UInt8.random(in: 0...255, using: &random) }
    #expect(memory.copy(contents.span, to: GuestAddress(0)) == size)
    let space = PagedSpace(memory, granule: granule, table: table && granule == 4096)
    // Device pages around a high base, shuffled over memory, with holes and permissions.
    let base: UInt64 = 0xffff_ffff_fff0_0000 - 4096
    let count = Int(262_144 / granule)
    var model: [UInt64: (guest: UInt64, permissions: DMAPermissions)] = [:]
    var cache = IOTLB(space)
    for round in 0..<6 {
      for i in 0..<UInt64(count) where round == 0 || random.chance(1, in: 20) {
        let at = base + i * granule
        if random.chance(1, in: 12) {
          space.remove(DMAAddress(at), byteCount: Int(granule))
          model[i] = nil
        } else {
          let guest = UInt64.random(in: 0..<UInt64(size) / granule, using: &random) * granule
          let permissions: DMAPermissions =
            random.chance(1, in: 10) ? [.read, .write].randomElement(using: &random)! : .readWrite
          space.remove(DMAAddress(at), byteCount: Int(granule))
          space.map(DMAAddress(at), byteCount: Int(granule), to: GuestAddress(guest), permissions)
          model[i] = (guest, permissions)
        }
      }
      space.fence.drain()
      #expect(cache.beginRound() == true, "a drain empties the cache")
      for _ in 0..<150 {
        let offset = UInt64.random(in: 0..<UInt64(count) * granule, using: &random)
        let length = Int(min(UInt64.random(in: 1...20_000, using: &random), UInt64(count) * granule - offset))
        let access: DMAAccess = random.chance(1, in: 2) ? .read : .write
        var expected: [UInt8] = []
        var fault: DMAFault?
        for i in 0..<UInt64(length) {
          let (page, within) = (offset + i).quotientAndRemainder(dividingBy: granule)
          guard let mapped = model[page], mapped.permissions.allows(access) else {
            fault = DMAFault(
              address: DMAAddress(base + offset + i), access: access,
              reason: model[page] == nil ? .unmapped : .permission)
            break
          }
          expected.append(contents[Int(mapped.guest + within)])
        }
        let found = cache.bytes(base + offset, length, access)
        #expect(found == (fault.map { .failure(.fault($0)) } ?? .success(expected)))
      }
      cache.endRound()
    }
    let counts = space.counts
    #expect(counts.misses > 0)
  }

  @Test("A hit needs the permission, and a larger one that came since is asked for (R118)")
  func permissionUpgrade() throws {
    let memory = try GuestMemory(byteCount: 65536)
    let space = PagedSpace(memory)
    space.map(DMAAddress(0), byteCount: 4096, to: GuestAddress(0), .read)
    var cache = IOTLB(space)
    _ = cache.beginRound()
    #expect(cache.byte(0) == .success(0))
    #expect(cache.byte(0, .write) == .fault(0, .permission, .write))
    space.map(DMAAddress(0), byteCount: 4096, to: GuestAddress(0), .readWrite)
    #expect(cache.byte(0, .write) == .success(0))
    cache.endRound()
  }

  @Test("All 2^64 bytes may be one run")
  func wholeSpace() throws {
    let memory = try GuestMemory(byteCount: 1 << 16)
    let run = try #require(memory.run(at: GuestAddress(0)))
    var cache = IOTLB(PhysicalSpace(memory))
    var pool = SegmentPool()
    _ = cache.beginRound()
    var list = pool.take()
    try cache.resolve(DMAAddress(0), count: 1 << 16, for: .write, into: &list)
    #expect(list.readable.byteCount == 1 << 16 && list.segmentCount == 1)
    cache.endRound()
    #expect(run.byteCount == 1 << 16)
  }

  @Test("A space with more pages than the cache has places still answers every look-up (R117)")
  func largerThanTheCache() throws {
    let memory = try GuestMemory(byteCount: 4 << 20)
    let space = PagedSpace(memory)
    // 1024 pages, backwards, so that no two join.
    for i in 0..<1024 {
      space.map(DMAAddress(UInt64(i) << 12), byteCount: 4096, to: GuestAddress(UInt64(1023 - i) << 12))
    }
    for i in 0..<1024 {
      #expect(memory.copy([UInt8(truncatingIfNeeded: i)].span, to: GuestAddress(UInt64(1023 - i) << 12)) == 1)
    }
    var cache = IOTLB(space)
    _ = cache.beginRound()
    for _ in 0..<3 {
      for i in 0..<1024 { #expect(cache.byte(UInt64(i) << 12) == .success(UInt8(truncatingIfNeeded: i))) }
    }
    cache.endRound()
  }

  @Test("A scattered area's cells lie where its pages are, on both sides of each boundary (R043)")
  func scatteredCells() throws {
    let memory = try GuestMemory(byteCount: 1 << 16)
    let space = PagedSpace(memory)
    for i in 0..<4 {
      space.map(DMAAddress(0x10000 + UInt64(i) << 12), byteCount: 4096, to: GuestAddress(UInt64(12 - 3 * i) << 12))
    }
    var cache = IOTLB(space)
    _ = cache.beginRound()
    let area = try cache.ring(DMAAddress(0x10010), count: 3 * 4096, for: .write)
    for offset in stride(from: 0, to: 3 * 4096, by: 8) { area.store64(UInt64(offset), at: offset) }
    for offset in stride(from: 0, to: 3 * 4096, by: 8) {
      let at = 0x10 + offset
      let guest = UInt64(12 - 3 * (at >> 12)) << 12 + UInt64(at & 4095)
      #expect(memory.bytes(8, at: GuestAddress(guest)).word == UInt64(offset))
    }
    cache.endRound()
  }
}
