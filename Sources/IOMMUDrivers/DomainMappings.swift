/// What was unmapped and the unit may remember still: one range as it is, of more only around what and how many.
struct WaitingRanges {
  private(set) var count = 0
  private(set) var first: UInt64 = .max
  private(set) var last: UInt64 = 0

  mutating func add(_ address: UInt64, _ byteCount: UInt64) {
    count += 1
    first = min(first, address)
    last = max(last, address + (byteCount - 1))
  }

  /// The smallest power of two of pages around a range that starts at a multiple of itself, as units name ranges: 2^order pages.
  static func order(_ first: UInt64, _ last: UInt64) -> Int {
    let differing = (first ^ last) >> 12
    return 64 - differing.leadingZeroBitCount
  }
}
