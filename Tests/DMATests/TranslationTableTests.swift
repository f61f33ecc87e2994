import Testing
import VirtioTestKit

@testable import DMA

/// The radix tree against a dictionary of pages.
@Suite("Translation table") struct TranslationTableTests {
  /// Page number → what a look-up of it must say.
  typealias Model = [UInt64: (host: UInt64, permissions: DMAPermissions)]

  private let table = TranslationTable()
  /// Host memory to point into: 2 GiB of address space, none of it touched.
  private let owner: GuestMemory
  private let memory: HostRun

  init() throws {
    owner = try GuestMemory(byteCount: 1 << 31)
    memory = try #require(owner.run(at: GuestAddress(0)))
  }

  /// Enters a run of the memory.
  private func insert(
    _ address: UInt64, _ count: UInt64 = 4096, to host: UInt64 = 0, _ permissions: DMAPermissions = .read,
    in other: TranslationTable? = nil
  ) throws -> Bool {
    let run = memory.part(from: host, count: count, seenFrom: DMAAddress(address), permissions: permissions)
    return (other ?? table).insert(try #require(run))
  }

  private func permissions(_ address: UInt64) -> DMAPermissions? { table.run(at: DMAAddress(address))?.permissions }

  private func matches(_ model: Model, at page: UInt64) -> Bool {
    let found = table.run(at: DMAAddress(page << 12 | 0x123))
    guard let expected = model[page] else { return found == nil }
    guard let found, found.contains(DMAAddress(page << 12)), found.permissions == expected.permissions else {
      return false
    }
    // The page as a run of its own must be the run of host memory that was mapped there.
    let part = found.part(
      from: page << 12 &- found.firstAddress.rawValue, count: 4096, seenFrom: DMAAddress(page << 12),
      permissions: found.permissions)
    let wanted = memory.part(
      from: expected.host, count: 4096, seenFrom: DMAAddress(page << 12), permissions: found.permissions)
    return part != nil && part == wanted
  }

  @Test("Random mappings of every size, replaced and removed, answer as a dictionary of pages does", arguments: 1...4)
  func randomMappings(_ seed: Int) throws {
    var model: Model = [:]
    var random = SeededGenerator(UInt64(seed))
    // A few neighbourhoods, so that mappings meet: low, around 512 pages, around 1 GiB, at the top.
    let bases: [UInt64] = [0, 0x200 - 20, (1 << 18) - 700, 0xf_ffff_ffff_fc00]
    for step in 0..<700 {
      let base = bases.randomElement(using: &random)!
      let page = base + UInt64.random(in: 0..<900, using: &random)
      let count = min(
        random.chance(1, in: 4)
          ? UInt64.random(in: 500...1100, using: &random) : UInt64.random(in: 1...20, using: &random),
        0x10_0000_0000_0000 - page)
      if random.chance(2, in: 3) {
        // Aligned on both sides at times, so that large entries come to be.
        let aligned = random.chance(1, in: 2)
        let start = aligned ? page & ~511 : page
        let host = UInt64.random(in: 0..<1000, using: &random) * (aligned ? 512 : 1) << 12
        let permissions = [DMAPermissions.read, .write, .readWrite].randomElement(using: &random)!
        #expect(try insert(start << 12, count << 12, to: host, permissions))
        // A new mapping may take away more of an old large one than it covers, never less, and never changes it.
        for i in 0..<count { model[start + i] = (host + i << 12, permissions) }
        for near in (start > 1200 ? start - 1200 : 0)..<start &+ count &+ 1200
        where model[near] != nil && !(start..<start + count).contains(near) {
          if table.run(at: DMAAddress(near << 12)) == nil { model[near] = nil }
        }
      } else {
        table.remove(from: page << 12, through: (page << 12) + (count << 12 &- 1))
        for i in 0..<count { model[page + i] = nil }
        // An entry that is only partly inside goes whole.
        for near in (page > 1200 ? page - 1200 : 0)..<page &+ count &+ 1200 where model[near] != nil {
          if table.run(at: DMAAddress(near << 12)) == nil { model[near] = nil }
        }
      }
      if step % 20 == 0 {
        for base in bases {
          for page in base..<min(base + 2200, 0x10_0000_0000_0000) {
            try #require(matches(model, at: page), "page \(page)")
          }
        }
      }
    }
    #expect(table.byteCount == UInt64(model.count) << 12)
    #expect(table.peakByteCount >= table.byteCount)
  }

  @Test("Replacing what is in the way of small mappings takes away no more than the large entry it was part of")
  func replacesOnlyTheEntry() throws {
    // 4 MiB: two entries of 2 MiB.
    #expect(try insert(0, 4 << 20))
    #expect(table.mappings == 2)
    #expect(try insert(8192, 4096, .write))
    #expect(permissions(8192) == .write && permissions(2 << 20) == .read)
    // And a large one over small ones serves every page.
    #expect(try insert(0, 2 << 20, .readWrite))
    for page in 0..<UInt64(512) { #expect(permissions(page << 12) == .readWrite) }
    #expect(table.byteCount == 4 << 20)
  }

  @Test("A removal that covers a part of an entry drops at least that part (R111)")
  func partialRemoval() throws {
    #expect(try insert(2 << 20, 2 << 20))
    #expect(table.remove(from: 3 << 20, through: 3 << 20) == 1)
    #expect(table.run(at: DMAAddress(3 << 20)) == nil)
    #expect(table.byteCount == 0 && table.mappings == 0)
    #expect(table.remove(from: 1, through: 0) == 0, "an empty range")
  }

  @Test("The last page of the address space can be mapped, found and removed (R059, R108)")
  func topOfSpace() throws {
    let top = UInt64.max - 4095
    #expect(try insert(top))
    #expect(try insert(0, to: 4096))
    #expect(table.run(at: DMAAddress(.max))?.firstAddress == DMAAddress(top))
    #expect(table.run(at: DMAAddress(top - 1)) == nil)
    #expect(table.run(at: DMAAddress(0))?.firstAddress == DMAAddress(0))
    // QEMU's flush of everything above 0xfef00000, wrapping ends taken as the end of the space.
    #expect(table.remove(from: 0xfef0_0000, through: .max) == 1)
    #expect(table.run(at: DMAAddress(.max)) == nil)
    #expect(table.remove(from: 0, through: .max) == 1)
    #expect(table.byteCount == 0)
  }

  @Test("A mapping that is not made of whole pages is refused")
  func alignment() throws {
    for (from, count, seen) in [(UInt64(1), UInt64(4096), UInt64(0)), (0, 4095, 0), (0, 4096, 1), (0, 4097, 0)] {
      #expect(try !insert(seen, count, to: from))
    }
    #expect(table.mappings == 0)
  }

  @Test("A tree that may not grow refuses, keeps what it has, and is whole again when emptied")
  func nodeLimit() throws {
    let table = TranslationTable(maxNodes: 8)
    let fence = TranslationFence()
    for _ in 0..<3 {
      var taken: [UInt64] = []
      for i in 0..<20 {
        // Far apart: a node or more each.
        let at = UInt64(i) << 40
        if try insert(at, in: table) { taken.append(at) }
      }
      #expect(!taken.isEmpty && taken.count < 20)
      for at in taken { #expect(table.run(at: DMAAddress(at)) != nil) }
      #expect(table.mappings == taken.count)
      table.removeAll(drained: fence)
      for at in taken { #expect(table.run(at: DMAAddress(at)) == nil) }
    }
  }

  @Test("Looking up the last of 4096 mappings costs what looking up the first does (R121)")
  func sublinear() throws {
    for i in 0..<UInt64(4096) { #expect(try insert(i << 13, to: (i % 100) << 12)) }
    let clock = ContinuousClock()
    func time(_ address: UInt64) -> Duration {
      (0..<5).map { _ in clock.measure { for _ in 0..<2_000 { _ = table.run(at: DMAAddress(address)) } } }.min()!
    }
    // A list would be thousands of times slower at its end.
    #expect(time(4095 << 13) < time(0) * 20)
  }
}
