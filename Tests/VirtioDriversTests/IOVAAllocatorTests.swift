import DMA
import DriverDMA
import Testing
import VirtioTestKit

/// The model: which granules are taken, one by one.
private struct NaiveAddresses {
  var taken: Set<UInt64> = []
  let first: UInt64
  let last: UInt64

  /// The highest free place, searched granule by granule.
  func place(_ count: UInt64, alignment: UInt64, limit: UInt64) -> UInt64? {
    guard limit >= first, min(last, limit) - first + 1 >= count else { return nil }
    var at = min(last, limit) - (count - 1)
    while true {
      if at % alignment == 0, at >= first, (at..<at + count).allSatisfy({ !taken.contains($0) }) { return at }
      if at <= first { return nil }
      at -= 1
    }
  }
}

@Suite("Device addresses are given out once")
struct IOVAAllocatorTests {
  @Test("What is allocated at random is the highest place that a granule-by-granule search finds", arguments: 0..<12)
  func model(seed: UInt64) throws {
    var random = SeededGenerator(seed)
    let granule: UInt64 = seed % 2 == 0 ? 4096 : 65536
    let first: UInt64 = 5, last: UInt64 = 404
    let allocator = IOVAAllocator(
      granule: granule, aperture: first * granule - (seed % 3)...last * granule + granule - 1 + (seed % 3),
      reserved: [100 * granule...101 * granule, 200 * granule + 5...200 * granule + 6, 0...granule])
    var model = NaiveAddresses(first: first, last: last)
    model.taken = [100, 101, 200]
    var held: [(at: UInt64, count: UInt64, bytes: UInt64)] = []
    for _ in 0..<1500 {
      if random.chance(5, in: 9) {
        let count = UInt64.random(in: 1...20, using: &random)
        let bytes = count * granule - UInt64.random(in: 0..<granule, using: &random)
        let alignment: UInt64 = 1 << UInt64.random(in: 0...5, using: &random)
        let limit = random.chance(1, in: 3) ? UInt64.random(in: first...last, using: &random) : last
        let expected = model.place(count, alignment: alignment, limit: limit)
        let address = try? allocator.allocate(
          bytes, alignment: alignment * granule, limit: limit * granule + granule - 1)
        #expect(address?.rawValue == expected.map { $0 * granule }, "seed \(seed)")
        if let expected {
          for n in expected..<expected + count { model.taken.insert(n) }
          held.append((expected, count, bytes))
        }
      } else if !held.isEmpty {
        let one = held.remove(at: Int.random(in: held.indices, using: &random))
        #expect(allocator.free(DMAAddress(one.at * granule), byteCount: one.bytes))
        for n in one.at..<one.at + one.count { model.taken.remove(n) }
      }
      #expect(allocator.freeBytes == (last - first + 1 - UInt64(model.taken.count)) * granule, "seed \(seed)")
    }
  }

  @Test(
    "Users with caches never hold the same byte, keep to limits, alignment and reserved ranges, and lose nothing",
    arguments: 0..<12)
  func caches(seed: UInt64) throws {
    var random = SeededGenerator(seed &+ 77)
    let aperture: ClosedRange<UInt64> = 0x1000...0x4f_ffff
    let allocator = IOVAAllocator(aperture: aperture, reserved: [0x10_0000...0x10_ffff])
    let all = allocator.freeBytes
    let limits: [UInt64] = [.max, 0x3f_ffff, 0x1f_ffff]
    let users = limits.map { allocator.addUser(limit: $0) }
    var held: [(address: UInt64, bytes: UInt64, user: Int)] = []
    var refused = 0
    for _ in 0..<3000 {
      if random.chance(4, in: 7) {
        let i = Int.random(in: 0..<3, using: &random)
        let bytes = UInt64.random(in: 1...0x3_0000, using: &random)
        let alignment: UInt64 = 1 << UInt64.random(in: 0...16, using: &random)
        do throws(DMAError) {
          let address = try allocator.allocate(bytes, alignment: alignment, user: users[i]).rawValue
          let end = address + (bytes - 1)
          #expect(address % max(alignment, 4096) == 0)
          #expect(aperture.contains(address) && aperture.contains(end) && end <= limits[i])
          #expect(end < 0x10_0000 || address > 0x10_ffff)
          for other in held {
            // To the last granule: an IOMMU maps nothing smaller.
            #expect(end | 4095 < other.address || other.address + (other.bytes - 1) | 4095 < address, "seed \(seed)")
          }
          held.append((address, bytes, i))
        } catch {
          #expect(error == .outOfAddresses(IOVASize.rounded(bytes)))
          refused += 1
        }
      } else if !held.isEmpty {
        let one = held.remove(at: Int.random(in: held.indices, using: &random))
        allocator.free(DMAAddress(one.address), byteCount: one.bytes, user: users[one.user])
      }
    }
    #expect(refused > 0, "the aperture is small enough to be exhausted")
    for one in held { allocator.free(DMAAddress(one.address), byteCount: one.bytes, user: users[one.user]) }
    #expect(allocator.freeBytes == all)
    for user in users { allocator.emptyCache(of: user) }
    #expect(allocator.freeBytes == all)
    // Nothing is in pieces: the lower part, up to what is reserved, can be had whole.
    #expect(try allocator.allocate(0xf_f000, limit: 0xf_ffff).rawValue == 0x1000)
    #expect(try allocator.allocate(0x3f_0000).rawValue == 0x11_0000)
    #expect(throws: DMAError.outOfAddresses(1)) { try allocator.allocate(1) }
  }

  @Test("A size that comes again is answered by the user's cache, the last one given back first")
  func cacheHits() throws {
    let allocator = IOVAAllocator(aperture: 0...0xff_ffff)
    let user = allocator.addUser()
    let a = try allocator.allocate(4096, user: user)
    let b = try allocator.allocate(4096, user: user)
    allocator.free(a, byteCount: 4096, user: user)
    allocator.free(b, byteCount: 4096, user: user)
    #expect(try allocator.allocate(100, user: user) == b)
    #expect(try allocator.allocate(4096, user: user) == a)
    let counts = allocator.counts(of: user)
    #expect(counts.hits == 2 && counts.all == 4)
  }

  @Test("What another user's cache holds is found before an allocation fails")
  func rescue() throws {
    let allocator = IOVAAllocator(aperture: 0...0xffff)
    let first = allocator.addUser(), second = allocator.addUser()
    let all = try (0..<16).map { _ in try allocator.allocate(4096, user: first) }
    #expect(throws: DMAError.outOfAddresses(4096)) { try allocator.allocate(4096, user: second) }
    for one in all { allocator.free(one, byteCount: 4096, user: first) }
    #expect(try allocator.allocate(0x1_0000, user: second).rawValue == 0)
  }

  @Test("An aperture of every address gives out the last granule and the first, and gives back")
  func everything() throws {
    let allocator = IOVAAllocator(aperture: 0...UInt64.max)
    let top = try allocator.allocate(1)
    #expect(top.rawValue == UInt64.max - 4095)
    #expect(try allocator.allocate(1, limit: 4095).rawValue == 0)
    #expect(throws: DMAError.outOfAddresses(1)) { try allocator.allocate(1, limit: 4094) }
    #expect(allocator.free(top, byteCount: 1))
    #expect(!allocator.free(top, byteCount: 1), "given back twice")
    #expect(throws: DMAError.self) { try allocator.allocate(0) }
    #expect(throws: DMAError.self) { try allocator.allocate(1, alignment: 3) }
  }

  @Test("An aperture without a whole granule gives out nothing")
  func empty() {
    #expect(IOVAAllocator(aperture: 100...5000).freeBytes == 0)
    #expect(IOVAAllocator(aperture: 4096...8190).freeBytes == 0)
    #expect(IOVAAllocator(aperture: 0...8191, reserved: [4095...4096]).freeBytes == 0)
    #expect(IOVAAllocator(aperture: 0...8191).freeBytes == 8192)
  }

  @Test("Pages are given out zeroed, whole and once; what is given back twice is free once")
  func pages() throws {
    let memory = try GuestMemory(byteCount: 1 << 20)
    let pages = GuestPages(memory, at: GuestAddress(0x1234), byteCount: 0x1_0000)
    #expect(pages.freeBytes == 0xf000)
    let a = try pages.allocate(5000)
    #expect(a.rawValue == 0x2000)
    #expect(try pages.allocate(1, alignment: 0x4000).rawValue == 0x4000)
    #expect(memory.copy([1, 2, 3].span, to: a) == 3)
    pages.free(a, byteCount: 5000)
    pages.free(a, byteCount: 5000)
    #expect(pages.freeBytes == 0xe000)
    #expect(try pages.allocate(4097) == a)
    #expect(memory.bytes(4, at: a) == [0, 0, 0, 0])
    #expect(throws: DMAError.outOfMemory(0x1_0000)) { try pages.allocate(0x1_0000) }
    let nowhere = GuestPages(memory, at: GuestAddress(1 << 30), byteCount: 1 << 20)
    #expect(throws: DMAError.missing(GuestAddress(1 << 30))) { try nowhere.allocate(1) }
  }
}

/// Sizes as a user's cache rounds them.
private enum IOVASize {
  static func rounded(_ bytes: UInt64) -> UInt64 {
    let granules = (bytes - 1) / 4096 + 1
    guard granules <= 32 else { return bytes }
    var size: UInt64 = 1
    while size < granules { size *= 2 }
    return size * 4096
  }
}
