/// The device addresses that an invalidation names: whole pages, both ends included.
struct PageRange {
  var first: UInt64
  var last: UInt64

  /// Every address.
  static var all: PageRange { PageRange(first: 0, last: .max) }

  private init(first: UInt64, last: UInt64) {
    self.first = first
    self.last = last
  }

  /// The 2^`order` pages around an address; from 2^52 on, all there are.
  init(around address: UInt64, order: UInt64) {
    guard order < 52 else {
      self = .all
      return
    }
    let size: UInt64 = 4096 << order
    self.init(first: address & ~(size - 1), last: address & ~0xFFF | (size - 1))
  }

  /// The pages that a word with the S bit in bit 0 names, as ATS does: one page or, with the bit, as many as the
  /// lowest clear bit of the address says.
  init(ats word: UInt64) {
    let order = word & 1 == 0 ? 0 : PageRange.order(ofLowestClearBit: word)
    self.init(around: word, order: order)
  }

  /// How many pages, as a power of two, the lowest clear bit of an address says.
  static func order(ofLowestClearBit address: UInt64) -> UInt64 {
    UInt64((~(address >> 12)).trailingZeroBitCount) + 1
  }
}
