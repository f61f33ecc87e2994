/// What a page of a second-level table allows.
public struct PageAccess: OptionSet, Hashable, Sendable {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }
  public static let read = PageAccess(rawValue: 1)
  public static let write = PageAccess(rawValue: 2)
  public static let both: PageAccess = [.read, .write]
}

/// A VT-d second-level table in guest memory: what the guest's operating system writes for one domain. 4 KiB pages.
public final class TranslationTable {
  /// The address of the topmost page of the table.
  public let root: UInt64
  /// 3 levels reach 39 bits, 4 levels 48.
  public let levels: Int
  /// The domain's number, as invalidations name it.
  public let domain: UInt16
  private let qemu: QEMU
  private var tables: [UInt64: UInt64] = [:]  // (prefix of the address and its level) → page of the table

  public init(_ qemu: QEMU, domain: UInt16, levels: Int = 4) throws(QTestError) {
    self.qemu = qemu
    self.domain = domain
    self.levels = levels
    root = try qemu.frames.take()
    try qemu.fill(root, count: 4096, with: 0)
  }

  /// One past the highest address the table can hold.
  public var end: UInt64 { 1 << UInt64(12 + 9 * levels) }

  /// Writes the entries of these pages. Nothing is invalidated.
  public func map(_ pages: [(address: UInt64, frame: UInt64)], _ access: PageAccess) throws(QTestError) {
    var stores: [(address: UInt64, value: UInt64)] = []
    for page in pages {
      let leaf = try leafTable(page.address, &stores)
      stores.append((leaf + (page.address >> 12 & 0x1ff) * 8, page.frame | access.rawValue))
    }
    try qemu.store(stores)
  }

  /// Clears the entries of these pages. Nothing is invalidated.
  public func unmap(_ addresses: [UInt64]) throws(QTestError) {
    var stores: [(address: UInt64, value: UInt64)] = []
    for address in addresses {
      let leaf = try leafTable(address, &stores)
      stores.append((leaf + (address >> 12 & 0x1ff) * 8, 0))
    }
    try qemu.store(stores)
  }

  private func leafTable(
    _ address: UInt64, _ stores: inout [(address: UInt64, value: UInt64)]
  ) throws(QTestError) -> UInt64 {
    guard address < end else {
      throw .missing("address 0x\(String(address, radix: 16)) in a table of \(levels) levels")
    }
    var table = root
    for level in stride(from: levels, to: 1, by: -1) {
      let shift = UInt64(12 + 9 * (level - 1))
      let key = (address >> shift) << 4 | UInt64(level)
      if let next = tables[key] {
        table = next
        continue
      }
      let next = try qemu.frames.take()
      try qemu.fill(next, count: 4096, with: 0)
      stores.append((table + (address >> shift & 0x1ff) * 8, next | PageAccess.both.rawValue))
      tables[key] = next
      table = next
    }
    return table
  }
}
