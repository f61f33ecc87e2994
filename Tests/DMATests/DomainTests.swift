import Testing
import VirtioTestKit

@testable import DMA
@testable import IOMMUInterface

/// An IOMMU domain of this process, against a page-by-page model of the same.
@Suite("Domain") struct DomainTests {
  private static let page: UInt64 = 4096
  /// Two regions with a hole between them; every page holds its own number.
  private static let memoryPages: UInt64 = 48
  private static let hole: Range<UInt64> = 20..<28

  private func makeMemory() throws -> GuestMemory {
    let memory = GuestMemory()
    for pages in [0..<Self.hole.lowerBound, Self.hole.upperBound..<Self.memoryPages] {
      try memory.add(pages.lowerBound * Self.page, byteCount: UInt64(pages.count) * Self.page)
      for page in pages { memory.write(contents(page), at: GuestAddress(page * Self.page)) }
    }
    return memory
  }

  /// No two pages look alike.
  private static let pages: [[UInt8]] = (0..<Int(memoryPages)).map { page in
    (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ page &* 31 &+ $0 / 256) }
  }
  private func contents(_ page: UInt64) -> [UInt8] { Self.pages[Int(page)] }

  /// One page of a mapping.
  private struct Entry: Equatable {
    var mapping: Int
    var guestPage: UInt64
    var permissions: DMAPermissions
  }

  @Test(
    "Random maps and unmaps do what a table of pages says, error for error, and look-ups yield its bytes and no others (R084, R110)",
    arguments: [false, true], [UInt64(1), 2, .random(in: 3...UInt64.max)])
  func model(atTheEnd: Bool, seed: UInt64) throws {
    // Below the end of all addresses, or from their beginning on: 64 pages.
    let window: UInt64 = 64
    let base = atTheEnd ? UInt64.max - (window * Self.page - 1) : 0
    var random = SeededGenerator(seed)
    let memory = try makeMemory()
    let domain = Domain(memory, maxMappings: 9)
    var model: [UInt64: Entry] = [:]
    var mappings: [Int: ClosedRange<UInt64>] = [:]
    var serial = 0
    var fullness = 0
    // Caches of two queues: one that begins a round after every change, and one that sleeps through many.
    var awake = IOTLB(domain)
    var drowsy = IOTLB(domain)
    for step in 0..<1500 {
      let at = UInt64.random(in: 0..<window, using: &random)
      let count = UInt64.random(in: 1...min(6, window - at), using: &random)
      let pages = at...at + count - 1
      if random.chance(1, in: 2) {
        let guest = UInt64.random(in: 0..<Self.memoryPages + 4, using: &random)
        let permissions = [DMAPermissions.readWrite, .read, .write, []].randomElement(using: &random)!
        let expected: DomainError? = mappings.count == 9 ? .full : pages.contains { model[$0] != nil } ? .overlap : nil
        if expected == .full { fullness += 1 }
        var found: DomainError?
        do throws(DomainError) {
          try domain.map(
            DMAAddress(base + at * Self.page), byteCount: count * Self.page, to: GuestAddress(guest * Self.page),
            permissions: permissions)
        } catch { found = error }
        #expect(found == expected, "seed \(seed), step \(step): map \(pages)")
        if expected == nil {
          serial += 1
          mappings[serial] = pages
          for page in pages {
            model[page] = Entry(mapping: serial, guestPage: guest + page - at, permissions: permissions)
          }
        }
      } else {
        // Ends need not be those of pages: a mapping goes whole or stays.
        let first =
          base + at * Self.page + (random.chance(1, in: 4) ? UInt64.random(in: 0..<Self.page, using: &random) : 0)
        let last = max(
          first,
          base + ((at + count) * Self.page - 1)
            - (random.chance(1, in: 4) ? UInt64.random(in: 0..<Self.page, using: &random) : 0))
        let touched = mappings.filter {
          base + $0.value.lowerBound * Self.page <= last && base + $0.value.upperBound * Self.page + 4095 >= first
        }
        let isWhole = touched.values.allSatisfy {
          base + $0.lowerBound * Self.page >= first && base + $0.upperBound * Self.page + 4095 <= last
        }
        let result = Result { () throws(DomainError) in
          try domain.unmap(first, through: last)
        }
        #expect(
          result == (isWhole ? .success(touched.count) : .failure(.split)),
          "seed \(seed), step \(step): unmap \(first)...\(last)")
        if isWhole {
          for (mapping, pages) in touched {
            mappings[mapping] = nil
            for page in pages { model[page] = nil }
          }
        }
      }
      #expect(
        domain.mappings == mappings.count && domain.byteCount == UInt64(model.count) * Self.page,
        "seed \(seed), step \(step)")
      check(&awake, base, model, window, &random, "seed \(seed), step \(step), a queue that is awake")
      if random.chance(1, in: 10) {
        check(&drowsy, base, model, window, &random, "seed \(seed), step \(step), a queue that slept")
      }
    }
    #expect(fullness > 0, "seed \(seed): the domain never was full")
    domain.removeAll()
    #expect(domain.mappings == 0 && domain.byteCount == 0)
    check(&awake, base, [:], window, &random, "seed \(seed), after everything went")
  }

  private func check(
    _ cache: inout IOTLB, _ base: UInt64, _ model: [UInt64: Entry], _ window: UInt64, _ random: inout SeededGenerator,
    _ place: String
  ) {
    _ = cache.beginRound()
    defer { cache.endRound() }
    for _ in 0..<4 {
      let offset = UInt64.random(in: 0..<window * Self.page, using: &random)
      let count = min(UInt64.random(in: 1...9000, using: &random), window * Self.page - offset)
      let access: DMAAccess = random.chance(1, in: 2) ? .read : .write
      var expected: [UInt8] = []
      var fault: DMAFault?
      var at = offset
      while at < offset + count {
        let (page, within) = at.quotientAndRemainder(dividingBy: Self.page)
        guard let entry = model[page], entry.guestPage < Self.memoryPages, !Self.hole.contains(entry.guestPage),
          entry.permissions.allows(access)
        else {
          let isDenied = model[page].map { !$0.permissions.allows(access) } ?? false
          fault = DMAFault(address: DMAAddress(base + at), access: access, reason: isDenied ? .permission : .unmapped)
          break
        }
        let end = min(Self.page, within + offset + count - at)
        expected += contents(entry.guestPage)[Int(within)..<Int(end)]
        at += end - within
      }
      let found = cache.bytes(base + offset, Int(count), access)
      #expect(
        found == (fault.map { .failure(.fault($0)) } ?? .success(expected)),
        "\(place): \(count) bytes at \(offset), \(access)")
    }
  }

  @Test("Ranges that are empty, crooked or past the end of a space are refused, and nothing changes (R059)")
  func ranges() throws {
    let domain = Domain(try makeMemory())
    for (address, count, guest) in [
      (UInt64(0), UInt64(0), UInt64(0)), (0, 1, 0), (0, 4095, 0), (0, 4097, 0), (1, 4096, 0), (4095, 4096, 0),
      (0, 4096, 1), (0, 4096, 2048),
      (UInt64.max - 4095, 8192, 0), (0, 8192, UInt64.max - 4095), (8192, UInt64.max - 4095, 0), (0, UInt64.max, 0),
    ] {
      #expect(throws: DomainError.range, "\(count) bytes at \(address) to \(guest)") {
        try domain.map(DMAAddress(address), byteCount: count, to: GuestAddress(guest), permissions: .readWrite)
      }
    }
    #expect(throws: DomainError.range) { try domain.unmap(1, through: 0) }
    #expect(domain.mappings == 0 && domain.byteCount == 0)
    // What is just inside works: the last page of all, and nearly everything at once.
    try domain.map(UInt64.max - 4095, to: 4096, .read)
    var cache = IOTLB(domain)
    #expect(cache.look(.max) == .success(contents(1)[4095]))
    #expect(try domain.unmap(0, through: .max) == 1)
    try domain.map(DMAAddress(0), byteCount: UInt64.max - 4095, to: GuestAddress(0), permissions: .read)
    #expect(throws: DomainError.overlap) { try domain.map(1 << 40, to: 0, .read) }
    #expect(domain.byteCount == UInt64.max - 4095)
  }

  @Test("An overlap of one page at either end is refused, and neighbours are not overlaps")
  func neighbours() throws {
    let domain = Domain(try makeMemory())
    func map(_ page: UInt64, _ count: UInt64) throws(DomainError) {
      try domain.map(page * 4096, to: page * 4096, pages: count)
    }
    try map(4, 4)
    for (page, count) in [(UInt64(1), UInt64(4)), (7, 1), (7, 9), (4, 1), (5, 2), (0, 40)] {
      #expect(throws: DomainError.overlap, "pages \(page), \(count) of them") { try map(page, count) }
    }
    try map(3, 1)
    try map(8, 1)
    #expect(domain.mappings == 3)
    for (first, last) in [(5, 6), (4, 6), (5, 8), (3, 6), (0, 4)] as [(UInt64, UInt64)] {
      #expect(throws: DomainError.split, "pages \(first) through \(last)") {
        try domain.unmap(first * 4096, through: last * 4096 + 4095)
      }
    }
    #expect(domain.mappings == 3)
    #expect(try domain.unmap(0, through: 2 * 4096 + 4095) == 0, "unmapping nothing is no error")
    #expect(try domain.unmap(0, through: 8 * 4096 - 1) == 2)
    #expect(try domain.unmap(8 * 4096, through: .max) == 1)
  }

  @Test("Memory that comes later is reachable through a mapping made before, and memory that goes is not (R069)")
  func memoryChanges() throws {
    let memory = GuestMemory()
    let domain = Domain(memory)
    try domain.map(0x10000, to: 0x4000, pages: 2)
    var cache = IOTLB(domain)
    #expect(cache.look(0x10ffe, 4) == .fault(0x10ffe))
    try memory.add(0x4000, byteCount: 8192)
    memory.write([1, 2, 3, 4], at: GuestAddress(0x4ffe))
    #expect(cache.look(0x10ffe, 4) == .success([1, 2, 3, 4]))
    try memory.remove(0x4000, byteCount: 8192)
    #expect(cache.look(0x10ffe, 4) == .fault(0x10ffe))
  }

  @Test("An unmap returns when the round that looked the page up has ended, and other rounds do not hold it (R110)")
  func drains() throws {
    let domain = Domain(try makeMemory())
    try domain.map(0, to: 0)
    var user = IOTLB(domain)
    var other = IOTLB(domain)
    _ = user.beginRound()
    #expect(user.bytes(0, 8, .read) == .success(Array(contents(0)[..<8])))
    let generation = domain.fence.generation
    let unmap = WorkThread { _ = try? domain.unmap(0) }
    while domain.fence.generation == generation { unmap.pause() }
    // What begins now finds nothing any more, while the old round may still use what it found.
    for _ in 0..<50 { #expect(other.look(0, 8) == .fault(0)) }
    #expect(!unmap.isDone)
    let isStale = user.isStale
    #expect(isStale)
    user.endRound()
    #expect(unmap.join())
    #expect(user.beginRound() == true)
    #expect(user.bytes(0, 8, .read) == .fault(0))
    user.endRound()
  }

  @Test("An unmap that finds nothing, and a map, wait for no queue")
  func waitsForNobody() throws {
    let domain = Domain(try makeMemory())
    try domain.map(0, to: 0)
    var user = IOTLB(domain)
    _ = user.beginRound()
    _ = user.bytes(0, 8, .read)
    #expect(try domain.unmap(4096, through: .max) == 0)
    try domain.map(4096, to: 4096, .read)
    #expect(throws: DomainError.split) { try domain.unmap(8, through: 4095) }
    let isStale = user.isStale
    #expect(!isStale, "nothing this round uses has gone")
    #expect(user.bytes(4096, 2, .read) == .success(Array(contents(1)[..<2])), "a new mapping works at once")
    user.endRound()
  }

  @Test(
    "The last 64 faults are kept, however many come (R093), and the look-ups of all queues are counted, of those that ended too"
  )
  func records() throws {
    let domain = Domain(try makeMemory())
    for i in 0..<10_000 { domain.report(DMAFault(address: DMAAddress(UInt64(i)), access: .read, reason: .unmapped)) }
    #expect(domain.faults.map(\.address.rawValue) == Array(9_936..<10_000))
    try domain.map(0, to: 0)
    func count(_ looks: Int) {
      var user = IOTLB(domain)
      _ = user.beginRound()
      for _ in 0..<looks { _ = user.bytes(0, 8, .read) }
      user.endRound()
    }
    count(4)
    #expect(domain.lookUps == (3, 1), "the first look-up went to the domain")
    count(5)
    #expect(domain.lookUps == (8, 1), "a queue that has ended stays counted, and the next one finds the domain's table")
    var user = IOTLB(domain)
    _ = user.look(0, 8)
    #expect(domain.lookUps == (9, 1), "so is one that goes on")
  }
}
