import DMA
import DriverDMA

/// What the entries of a unit's page tables look like: 512 of 8 bytes in a table, level 1 the lowest.
protocol PageTableFormat {
  /// The entry in a table of `level` that leads to the table below, at `address`.
  static func table(at address: UInt64, level: Int) -> UInt64
  /// The entry in a table of `level` for the page at `address`.
  static func page(at address: UInt64, level: Int, permissions: DMAPermissions) -> UInt64
  static func isPresent(_ entry: UInt64) -> Bool
  /// Whether an entry that is present ends the walk.
  static func isPage(_ entry: UInt64, level: Int) -> Bool
  /// Where a table or page is.
  static func address(_ entry: UInt64) -> UInt64
}

/// The page tables of one domain, as its driver writes them: the largest pages that fit, and never two for one address.
///
/// Tables that become empty are kept for the next mapping near by; only a large page takes the place of one.
struct PageTables<Format: PageTableFormat>: ~Copyable {
  let root: UInt64
  let levels: Int
  /// The level of the largest page.
  private let largest: Int
  private let memory: TableMemory
  /// Tables whose place a page has taken: the unit may know them still.
  private var retired: [UInt64] = []
  /// Tables, the first included.
  private(set) var tableCount = 1

  init(in memory: TableMemory, levels: Int, largest: Int) throws(DMAError) {
    self.memory = memory
    self.levels = levels
    self.largest = min(largest, levels)
    root = try memory.allocate()
  }

  private static func size(_ level: Int) -> UInt64 { 4096 << UInt64(9 * (level - 1)) }

  private static func slot(_ table: UInt64, _ address: UInt64, _ level: Int) -> UInt64 {
    table &+ (address >> UInt64(12 + 9 * (level - 1)) & 511) * 8
  }

  /// Whether a table was taken out of the tree and not yet given back.
  var hasRetired: Bool { !retired.isEmpty }

  /// Gives back what was taken out of the tree, now that the unit has forgotten it.
  mutating func freeRetired() {
    for table in retired { memory.free(table) }
    tableCount -= retired.count
    retired.removeAll(keepingCapacity: true)
  }

  /// Gives everything back. Nothing may walk the tables any more, nor the driver.
  mutating func freeAll() {
    freeRetired()
    free(root, level: levels)
    tableCount = 0
  }

  private func free(_ table: UInt64, level: Int) {
    for i in 0..<UInt64(512) where level > 1 {
      let entry = memory.load(table &+ i * 8)
      if Format.isPresent(entry), !Format.isPage(entry, level: level) { free(Format.address(entry), level: level - 1) }
    }
    memory.free(table)
  }

  /// Makes pages visible; all three numbers are multiples of 4096 and within reach. Whether tables came or went, so
  /// that the unit has to forget more than pages. On an error nothing new is visible any more.
  mutating func map(
    _ address: UInt64, to guest: UInt64, count: UInt64, permissions: DMAPermissions
  ) throws(DMAError) -> Bool {
    let before = (tableCount, retired.count)
    var done: UInt64 = 0
    do throws(DMAError) {
      while done < count {
        done += try mapSome(address + done, to: guest + done, atMost: count - done, permissions: permissions)
      }
    } catch {
      if done > 0 { try? unmap(address, count: done) }
      throw error
    }
    return before != (tableCount, retired.count)
  }

  /// Maps pages of one size from the beginning of a range, as many as one table takes.
  private mutating func mapSome(
    _ address: UInt64, to guest: UInt64, atMost count: UInt64, permissions: DMAPermissions
  ) throws(DMAError) -> UInt64 {
    var level = largest
    while level > 1, (address | guest) & (Self.size(level) - 1) != 0 || count < Self.size(level) { level -= 1 }
    while true {
      let table = try descend(to: level, address)
      let entry = memory.load(Self.slot(table, address, level))
      guard Format.isPresent(entry) else {
        return fill(table, level, address, to: guest, atMost: count, permissions: permissions)
      }
      guard level > 1, !Format.isPage(entry, level: level) else { throw .iommu(DMAAddress(address)) }
      let lower = Format.address(entry)
      if isEmpty(lower) {
        retired.append(lower)
        memory.store(
          Format.page(at: guest, level: level, permissions: permissions), at: Self.slot(table, address, level))
        return Self.size(level)
      }
      level -= 1
    }
  }

  private func fill(
    _ table: UInt64, _ level: Int, _ address: UInt64, to guest: UInt64, atMost count: UInt64,
    permissions: DMAPermissions
  ) -> UInt64 {
    let size = Self.size(level)
    var done: UInt64 = 0
    repeat {
      memory.store(
        Format.page(at: guest + done, level: level, permissions: permissions),
        at: Self.slot(table, address + done, level))
      done += size
      // On to the end of the table, or to what is not free.
    } while count - done >= size && (address + done) & (size << 9 - 1) != 0
      && !Format.isPresent(memory.load(Self.slot(table, address + done, level)))
    return done
  }

  private func isEmpty(_ table: UInt64) -> Bool {
    for i in 0..<UInt64(512) where Format.isPresent(memory.load(table &+ i * 8)) { return false }
    return true
  }

  /// The table of a level on an address's way, made if it is not there.
  private mutating func descend(to level: Int, _ address: UInt64) throws(DMAError) -> UInt64 {
    var table = root
    for above in stride(from: levels, to: level, by: -1) {
      let slot = Self.slot(table, address, above)
      let entry = memory.load(slot)
      if Format.isPresent(entry) {
        guard !Format.isPage(entry, level: above) else { throw .iommu(DMAAddress(address)) }
        table = Format.address(entry)
      } else {
        table = try memory.allocate()
        tableCount += 1
        memory.store(Format.table(at: table, level: above), at: slot)
      }
    }
    return table
  }

  /// Takes pages away, all of a range or, if part of it is not mapped or of a larger page, none: large pages are not
  /// split.
  mutating func unmap(_ address: UInt64, count: UInt64) throws(DMAError) {
    try each(address, count) { _, _ in }
    try each(address, count) { memory, slot in memory.store(0, at: slot) }
  }

  private func each(_ address: UInt64, _ count: UInt64, _ body: (TableMemory, UInt64) -> Void) throws(DMAError) {
    var done: UInt64 = 0
    while done < count {
      let at = address + done
      guard let (slot, size) = leaf(at), at & (size - 1) == 0, size <= count - done else {
        throw .iommu(DMAAddress(at))
      }
      body(memory, slot)
      done += size
    }
  }

  /// The entry that ends an address's walk, and how much it maps.
  private func leaf(_ address: UInt64) -> (slot: UInt64, size: UInt64)? {
    var table = root
    for level in stride(from: levels, through: 1, by: -1) {
      let slot = Self.slot(table, address, level)
      let entry = memory.load(slot)
      guard Format.isPresent(entry) else { return nil }
      if level == 1 || Format.isPage(entry, level: level) { return (slot, Self.size(level)) }
      table = Format.address(entry)
    }
    return nil
  }
}
