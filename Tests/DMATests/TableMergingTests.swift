import Testing
import VirtioTestKit

@testable import DMA

@Suite("What entering a mapping changes") struct TableMergingTests {
  private let table = TranslationTable()
  private let memory: GuestMemory
  private let whole: HostRun

  init() throws {
    memory = try GuestMemory(byteCount: 1 << 30)
    whole = try #require(memory.run(at: GuestAddress(0)))
  }

  private func run(_ page: UInt64, _ count: UInt64, to host: UInt64, _ permissions: DMAPermissions) throws -> HostRun {
    try #require(
      whole.part(from: host << 12, count: count << 12, seenFrom: DMAAddress(page << 12), permissions: permissions))
  }

  @Test(
    "Of every pair of permissions, known and asked for, what the run allows is kept and granted; losing one is taking away"
  )
  func everyPair() throws {
    let all: [DMAPermissions] = [[], .read, .write, .readWrite]
    for known in all {
      for asked in all.dropFirst() {
        for allowed in all {
          table.remove(from: 0, through: .max)
          if !known.isEmpty { #expect(table.insert(try run(7, 1, to: 7, known))) }
          let change = table.change(to: try run(7, 1, to: 7, allowed), granting: asked)
          let expected = allowed.intersection(asked.union(known))
          #expect(change.pieces.map(\.permissions) == [expected])
          #expect(change.isNews == (expected != known) && change.takesAway == !expected.isSuperset(of: known))
          // Where it leads elsewhere, nothing of what is known counts.
          let elsewhere = table.change(to: try run(7, 1, to: 8, allowed), granting: asked)
          #expect(
            elsewhere.pieces.map(\.permissions) == [allowed.intersection(asked)]
              && elsewhere.takesAway == !known.isEmpty)
        }
      }
    }
  }

  @Test(
    "A run over holes, other memory and larger entries is cut where what is granted differs, and covers all of itself")
  func pieces() throws {
    #expect(table.insert(try run(512, 512, to: 512, .read)))
    #expect(table.insert(try run(1030, 2, to: 1030, .readWrite)))
    #expect(table.insert(try run(1040, 1, to: 3, .write)))
    let change = table.change(to: try run(500, 600, to: 500, .readWrite), granting: .write)
    let cuts: [(UInt64, DMAPermissions)] = [
      (500, .write), (512, .readWrite), (1024, .write), (1030, .readWrite), (1032, .write),
    ]
    #expect(
      change.pieces.map { $0.firstAddress.rawValue >> 12 } == cuts.map(\.0)
        && change.pieces.map(\.permissions) == cuts.map(\.1))
    #expect(change.pieces.reduce(0) { $0 + $1.byteCount } == 600 << 12)
    #expect(change.takesAway && change.isNews, "page 1040 leads elsewhere")
    // A part of a large entry cannot change alone.
    let part = table.change(to: try run(600, 1, to: 600, .readWrite), granting: .write)
    #expect(part.takesAway && part.pieces.map(\.permissions) == [.readWrite])
    let same = table.change(to: try run(600, 1, to: 600, .readWrite), granting: .read)
    #expect(!same.isNews && !same.takesAway)
  }

  @Test("Entering the pieces of random changes leaves each page with what a dictionary of pages says", arguments: 1...4)
  func model(_ seed: Int) throws {
    var random = SeededGenerator(UInt64(seed))
    var model: [UInt64: (host: UInt64, permissions: DMAPermissions)] = [:]
    let all: [DMAPermissions] = [.read, .write, .readWrite]
    for _ in 0..<400 {
      let page = UInt64.random(in: 0..<1500, using: &random)
      let count = UInt64.random(in: 1...(random.chance(1, in: 4) ? 900 : 3), using: &random)
      let shift: UInt64 = random.chance(1, in: 4) ? 1 : 0
      let allowed = all.randomElement(using: &random)!
      let asked = all.randomElement(using: &random)!
      let change = table.change(to: try run(page, count, to: page + shift, allowed), granting: asked)
      var takesAway = false
      var isNews = false
      for p in page..<page + count {
        let old = model[p]
        let isSame = old?.host == p + shift
        let new = allowed.intersection(asked.union(isSame ? old!.permissions : []))
        if let old { takesAway = takesAway || !isSame || !new.isSuperset(of: old.permissions) }
        isNews = isNews || new != (isSame ? old!.permissions : []) || (old != nil && !isSame)
        model[p] = new.isEmpty ? nil : (p + shift, new)
      }
      // A large entry's neighbours may make it more, never less.
      #expect(change.isNews == isNews && (change.takesAway || !takesAway))
      guard change.isNews else { continue }
      if change.takesAway { table.remove(from: page << 12, through: (page + count) << 12 - 1) }
      for piece in change.pieces where !piece.permissions.isEmpty { #expect(table.insert(piece)) }
      for p in 0..<UInt64(2500) {
        let found = table.run(at: DMAAddress(p << 12))
        if found == nil, change.takesAway, !(page..<page + count).contains(p) { model[p] = nil }
        #expect(found?.permissions == model[p]?.permissions)
      }
    }
  }
}
