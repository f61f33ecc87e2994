import DMA
public import DriverDMA
import IOMMUInterface
public import IOMMUs
import Testing
import VirtioTestKit

extension XenGrantTable: GrantTable {
  public func grant(_ first: UInt64, count: UInt64, readOnly: Bool) throws(DMAError) -> UInt32 {
    guard let reference = grantAccess(to: first, count: count, readOnly: readOnly) else { throw .outOfGrants(count) }
    return reference
  }
}

@Suite("Grants, from both sides", .timeLimit(.minutes(10)))
struct GrantTests {
  private func bench(capacity: Int = 8192) throws -> (GuestMemory, GuestPages, XenGrantTable, EndpointSpace) {
    let memory = try GuestMemory(byteCount: 8 << 20)
    memory.numberPages(from: 1024, count: 1024)
    let table = XenGrantTable(capacity: capacity)
    let endpoint = EndpointSpace(memory, requester: UnitRig.requester, isOpen: true)
    table.adopt(endpoint)
    return (memory, GuestPages(memory, at: GuestAddress(1 << 20), byteCount: 1 << 20), table, endpoint)
  }

  @Test(
    "Mappings made and ended at random through the mapper reach their pages, in their direction, and leave nothing behind (R177, R180)"
  )
  func churn() throws {
    let (_, pages, table, endpoint) = try bench()
    let mapper = try GrantMapper(table, pages: pages)
    var device = DeviceView(endpoint)
    var random = SeededGenerator(9)
    var held: [MappedRange] = []
    for _ in 0..<5000 {
      if held.count < 60, random.chance(1, in: 2) {
        let page = UInt64.random(in: 1024..<2000, using: &random)
        let range = try mapper.mapRange(
          GuestAddress(page << 12), count: UInt64.random(in: 8...40000, using: &random),
          random.chance(1, in: 2) ? .toDevice : .fromDevice)
        #expect(range.address.rawValue >> 63 == 1 && device.word(range.address.rawValue) == page)
        #expect(device.canWrite(range.address.rawValue) == (range.direction == .fromDevice))
        held.append(range)
      } else if !held.isEmpty {
        let one = held.remove(at: Int.random(in: held.indices, using: &random))
        try mapper.unmapRange(one)
        #expect(device.word(one.address.rawValue) == nil)
      }
    }
    for one in held { try mapper.unmapRange(one) }
    #expect(table.count == 0)
  }

  @Test("A full table is an error, and a page that the other domain keeps breaks the mapper (R180)")
  func failures() throws {
    let (_, pages, table, _) = try bench(capacity: 16)
    let mapper = try GrantMapper(table, pages: pages)
    let range = try mapper.mapRange(GuestAddress(4 << 20), count: 8 * 4096, .toDevice)
    #expect(throws: DMAError.outOfGrants(1)) { _ = try mapper.mapRange(GuestAddress(4 << 20), count: 1, .toDevice) }
    let reference = UInt32(truncatingIfNeeded: range.address.rawValue >> 12)
    #expect(table.map(reference, readOnly: true) != nil)
    #expect(throws: DMAError.stillInUse(range.address)) { try mapper.unmapRange(range) }
    #expect(mapper.isBroken)
  }

  @Test("Ending a grant waits for the access that is under way")
  func waitsForAccess() throws {
    let (_, _, table, endpoint) = try bench()
    let first = try #require(table.grantAccess(to: 1029, count: 1, readOnly: false))
    var cache = IOTLB(endpoint)
    _ = cache.beginRound()
    var pool = SegmentPool()
    var segments = pool.take()
    try cache.resolve(DMAAddress(1 << 63 | UInt64(first) << 12), count: 8, for: .read, into: &segments)
    let ending = WorkThread { #expect(table.endAccess(first, count: 1)) }
    // It has begun, and cannot end before the round does.
    for _ in 0..<20_000 where !cache.isStale { ending.pause() }
    #expect(cache.isStale && !ending.isDone)
    #expect(segments.readable.read(UInt64.self, at: 0) == 1029)
    pool.give(back: segments)
    cache.endRound()
    #expect(ending.join())
  }
}
