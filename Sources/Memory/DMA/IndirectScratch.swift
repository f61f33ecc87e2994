internal import CLinux

/// A queue's private copy of an indirect descriptor table: fetched once, so that the driver cannot change it between
/// check and use, and read without caring how its pages are scattered or aligned. Room for a large table is given back
/// with the next usual one. One thread uses it.
@safe public struct IndirectScratch: ~Copyable {
  @usableFromInline var words: UnsafeMutablePointer<UInt64>
  private(set) var capacity: Int
  /// Words for 1024 descriptors: as many as drivers use.
  static let usual = 2048
  /// Descriptors in the copy.
  public private(set) var count = 0

  public init() {
    capacity = 256
    // Safe: `capacity` words, freed in deinit; only words below 2 × count are read.
    unsafe words = Self.room(capacity)
  }

  deinit { unsafe LargeStorage.free(words, byteCount: capacity * 8) }

  private static func room(_ capacity: Int) -> UnsafeMutablePointer<UInt64> {
    // Safe: words are trivial, and none is read before it was written.
    unsafe LargeStorage.allocate(byteCount: capacity * 8).bindMemory(to: UInt64.self, capacity: capacity)
  }

  /// Copies `count` descriptors of 16 bytes from the start of `segments`. False when they are not all there.
  public mutating func load(_ count: Int, from segments: borrowing BufferSegments) -> Bool {
    guard count > 0, segments.byteCount >= count * 16 else { return false }
    if count * 2 > capacity || (capacity > Self.usual && count * 2 <= Self.usual) {
      unsafe LargeStorage.free(words, byteCount: capacity * 8)
      capacity = count * 2 <= Self.usual ? min(max(256, count * 4), Self.usual) : count * 2
      unsafe words = Self.room(capacity)
    }
    let to = unsafe UnsafeMutableRawPointer(words)
    // Safe: `capacity` holds count × 2 words and the walk stays below count × 16 bytes.
    let n = unsafe segments.walk(0, count * 16) { at, p, n in unsafe clx_copy(to + at, p, n) }
    self.count = count
    return n == count * 16
  }

  /// Word 0 (address) or 1 (length, flags, next) of descriptor `index`, in the host's byte order.
  @inlinable public func word(_ index: Int, _ which: Int) -> UInt64 {
    precondition(index >= 0 && index < count && which & ~1 == 0)
    // Safe: checked just now.
    return unsafe UInt64(littleEndian: words[index &* 2 &+ which])
  }
}
