public import CLinux

/// Where the segments of one side of a chain are.
@unsafe @frozen @usableFromInline struct SegmentSide {
  @usableFromInline var base: UnsafeMutablePointer<iovec>
  @usableFromInline var segmentCount: Int
  @usableFromInline var byteCount: Int
  @usableFromInline var splits = 0

  @inlinable init(base: UnsafeMutablePointer<iovec>, segmentCount: Int, byteCount: Int) {
    unsafe self.base = base
    unsafe self.segmentCount = segmentCount
    unsafe self.byteCount = byteCount
  }
}

/// What stands before the segments of a chain in their storage, so that a chain is one pointer and moves in a register.
/// After the header come `capacity` segments, then as many pairs of the first and the last device address behind each.
///
/// Drains read the stamp, the count of pairs and the pairs, from other threads (``QueueHolds``). The queue writes them
/// as atomics, the stamp last; while it is 0 no drain looks at the rest.
@unsafe @frozen @usableFromInline struct SegmentHeader {
  // These four first, in this order: they are found by their offsets.
  @usableFromInline var readable: SegmentSide
  @usableFromInline var writable: SegmentSide
  /// 0, or the generation the chain was resolved in plus 1: then it is in flight, and holds its pages.
  @usableFromInline var stamp: UInt64 = 0
  /// How many pairs of addresses there are, and in the upper half 1 more than where the writable ones begin, or 0. The
  /// two before those do not count.
  @usableFromInline var pairs: UInt64 = 0
  @usableFromInline var capacity: Int
  /// What is behind segments in memory that is not mapped here, if there are any: a retained ``RemoteCopies``.
  @usableFromInline var copies: UnsafeMutableRawPointer?
  /// The queue's, if drains see this block.
  var holds: Unmanaged<QueueHolds>?
  /// Where in its list.
  var place = 0
  @usableFromInline var fault: DMAFault?
  /// Of a chain with a fault: its last device-writable byte, if that can be reached.
  @usableFromInline var status: UnsafeMutableRawPointer?

  init(capacity: Int, none: SegmentSide) {
    unsafe readable = none
    unsafe writable = none
    unsafe self.capacity = capacity
  }

  @inlinable static var sideBytes: Int { 32 }
  @inlinable static var stampOffset: Int { 64 }
  @inlinable static var pairsOffset: Int { 72 }
  /// Segments begin so many bytes after the header does.
  @inlinable static var stride: Int { 192 }
  /// Bytes of storage for a header and `capacity` segments.
  @inlinable static func byteCount(capacity: Int) -> Int { unsafe stride &+ capacity &* 32 }

  /// Storage for a header and `capacity` segments.
  static func allocate(capacity: Int) -> UnsafeMutablePointer<SegmentHeader> {
    assert(
      unsafe MemoryLayout<SegmentHeader>.size <= stride
        && MemoryLayout<SegmentHeader>.offset(of: \.writable) == sideBytes)
    assert(
      unsafe MemoryLayout<SegmentHeader>.offset(of: \.stamp) == stampOffset
        && MemoryLayout<SegmentHeader>.offset(of: \.pairs) == pairsOffset)
    let raw = unsafe LargeStorage.allocate(byteCount: byteCount(capacity: capacity))
    let header = unsafe raw.bindMemory(to: SegmentHeader.self, capacity: 1)
    let none = unsafe SegmentSide(base: entries(header), segmentCount: 0, byteCount: 0)
    // Safe: the storage was just made, and is large enough for both.
    unsafe header.initialize(to: SegmentHeader(capacity: capacity, none: none))
    return unsafe header
  }

  /// Frees storage, which holds nothing any more.
  @usableFromInline static func free(_ header: UnsafeMutablePointer<SegmentHeader>) {
    if unsafe header.pointee.copies != nil { unsafe dropCopies(header) }
    // Safe: allocated above, and unused by other threads once drains do not see it.
    if let holds = unsafe header.pointee.holds { unsafe holds.takeRetainedValue().remove(header) }
    unsafe LargeStorage.free(header, byteCount: byteCount(capacity: header.pointee.capacity))
  }

  @inlinable static func entries(_ header: UnsafeMutablePointer<SegmentHeader>) -> UnsafeMutablePointer<iovec> {
    // Safe: the segments follow the header in the same allocation, and iovec is trivial.
    unsafe (UnsafeMutableRawPointer(header) + stride).assumingMemoryBound(to: iovec.self)
  }

  @inlinable static func sides(_ header: UnsafeMutablePointer<SegmentHeader>) -> UnsafeMutablePointer<SegmentSide> {
    // Safe: the two sides are the first fields, one after the other.
    unsafe UnsafeMutableRawPointer(header).assumingMemoryBound(to: SegmentSide.self)
  }

  // MARK: Copies

  /// The chain's copies, which are made if there are none.
  static func makeCopies(
    _ header: UnsafeMutablePointer<SegmentHeader>, of memory: any RemoteMemory
  ) -> RemoteCopies {
    if let copies = unsafe copies(header) { return copies }
    let new = RemoteCopies(memory)
    // Safe: given back by dropCopies.
    unsafe header.pointee.copies = Unmanaged.passRetained(new).toOpaque()
    return new
  }

  static func copies(_ header: UnsafeMutablePointer<SegmentHeader>) -> RemoteCopies? {
    guard let copies = unsafe header.pointee.copies else { return nil }
    // Safe: put there by makeCopies, and retained since.
    return unsafe Unmanaged<RemoteCopies>.fromOpaque(copies).takeUnretainedValue()
  }

  @usableFromInline @inline(never) static func dropCopies(_ header: UnsafeMutablePointer<SegmentHeader>) {
    guard let copies = unsafe header.pointee.copies else { return }
    unsafe header.pointee.copies = nil
    // Safe: retained by makeCopies, and given back once.
    unsafe Unmanaged<RemoteCopies>.fromOpaque(copies).release()
  }

  // MARK: Holds

  @inlinable @inline(__always) static func stamp(
    _ header: UnsafeMutablePointer<SegmentHeader>
  ) -> UnsafeMutableRawPointer {
    unsafe UnsafeMutableRawPointer(header) + stampOffset
  }

  /// From now on, until ``unpublish(_:)``, drains of `stamp` and later wait for the chain where they overlap its pairs.
  @inlinable @inline(__always) static func publish(
    _ header: UnsafeMutablePointer<SegmentHeader>, pairs: Int, stamp: UInt64
  ) {
    unsafe store64(UnsafeMutableRawPointer(header) + pairsOffset, UInt64(truncatingIfNeeded: pairs))
    // No order between the two: drains look at chains once the round is over, whose end is a release.
    unsafe store64(Self.stamp(header), stamp)
  }

  @inlinable @inline(__always) static func unpublish(_ header: UnsafeMutablePointer<SegmentHeader>) {
    unsafe storeRelease64(stamp(header), 0)
  }

  /// Whether one of the pairs shares a byte with `range`. May see pairs of a later chain, if the one asked about ends
  /// meanwhile.
  static func uses(_ header: UnsafeMutablePointer<SegmentHeader>, _ range: ClosedRange<UInt64>) -> Bool {
    let capacity = unsafe header.pointee.capacity
    let word = unsafe load64(UnsafeMutableRawPointer(header) + pairsOffset)
    let count = min(Int(truncatingIfNeeded: word & 0xffff_ffff), capacity)
    let writableStart = Int(truncatingIfNeeded: word >> 32) - 1
    // Safe: `capacity` pairs follow the segments; `count` is no more.
    let pairs = unsafe UnsafeMutableRawPointer(entries(header) + capacity)
    for i in 0..<count where !(writableStart - 2..<writableStart).contains(i) {
      let first = unsafe load64(pairs + 16 * i)
      let last = unsafe load64(pairs + 16 * i + 8)
      if first <= last, first <= range.upperBound, last >= range.lowerBound { return true }
    }
    return false
  }
}
