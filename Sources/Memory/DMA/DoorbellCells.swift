/// Cells of four bytes in which another process leaves numbers, and from which they are taken: doorbells in shared
/// memory.
///
/// A cell without news holds all ones, a number that is no news; taking exchanges it back. Whatever the other process
/// writes, and whenever, each cell yields what was written last or nothing. Any thread may take.
@safe public final class DoorbellCells: Sendable {
  private let mapping: HostMapping
  private let offset: Int
  /// Cells.
  public let count: Int
  /// What a cell holds that has no news.
  private static var none: UInt32 { .max }

  /// The cells from `offset` on, all without news. Nil: they are not all in the mapping, or not aligned.
  public init?(_ mapping: HostMapping, from offset: Int, count: Int) {
    guard offset >= 0, offset % 4 == 0, count >= 0, count <= mapping.byteCount / 4,
      offset <= mapping.byteCount - 4 * count
    else { return nil }
    (self.mapping, self.offset, self.count) = (mapping, offset, count)
    for index in 0..<count { _ = exchange(index) }
  }

  /// What was left in a cell since the last time, in little-endian order; nil: nothing.
  public func take(_ index: Int) -> UInt32? {
    // A look first: an exchange would take the cache line away from the writer each time.
    // Safe: `place` has checked the index; the mapping lives as long as this object.
    guard unsafe load32(place(index)) != Self.none else { return nil }
    let value = exchange(index)
    return value == Self.none ? nil : UInt32(littleEndian: value)
  }

  private func exchange(_ index: Int) -> UInt32 {
    // Safe: as in take.
    unsafe exchange32(place(index), Self.none)
  }

  private func place(_ index: Int) -> UnsafeMutableRawPointer {
    precondition(index >= 0 && index < count)
    // Safe: the cells were checked to lie in the mapping, and the index was just checked.
    return unsafe mapping.base + offset + 4 * index
  }
}
