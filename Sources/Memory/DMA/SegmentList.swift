public import CLinux

/// The host memory behind one descriptor chain while it is being resolved: device-readable segments first, then
/// device-writable ones. ``seal(_:fault:)`` makes the chain's ``ChainMemory`` of it; otherwise its storage goes back to
/// the queue's ``SegmentPool``. One thread uses it.
@safe @frozen public struct SegmentList: ~Copyable {
  // The storage holds `capacity` entries. Two spare entries follow the readable segments and two the writable ones, so
  // that each side can be split twice (at a request's header and at its status) without moving.
  //
  // A segment's pair of device addresses has the segment's index; those of spare entries do not count. Splitting moves
  // no pair.
  @usableFromInline var header: UnsafeMutablePointer<SegmentHeader>
  @usableFromInline var capacity: Int
  @usableFromInline var count = 0
  @usableFromInline var byteCount = 0
  /// Where writable segments begin, once they do.
  @usableFromInline var writableStart = -1
  @usableFromInline var readableCount = 0
  @usableFromInline var readableBytes = 0
  /// More was appended than a list takes: what is in it is not the whole.
  @inlinable public var isFull: Bool { overflowed }
  @usableFromInline var overflowed = false
  /// A full list of so many segments or more grows no more. Storage grows fourfold, from 32 Ki to 128 Ki at last, so a
  /// list takes 131 072: 512 MiB in scattered pages.
  public static var growthLimit: Int { 1 << 16 }

  @inlinable init(_ header: UnsafeMutablePointer<SegmentHeader>) {
    unsafe self.header = header
    capacity = unsafe header.pointee.capacity
  }

  @inlinable deinit {
    // Safe: allocated by the pool (or by grow), given back or freed exactly once.
    unsafe SegmentHeader.free(header)
  }

  /// Whether some segment is a copy of memory that another process has.
  @inlinable public var hasCopies: Bool { unsafe header.pointee.copies != nil }

  /// Pages of such copies.
  package var copiedPages: Int { unsafe SegmentHeader.copies(header)?.pages ?? 0 }

  /// A copy of `count` bytes at `device`, for a segment of this list; nil if it would be one too many.
  mutating func makeCopy(
    of memory: any RemoteMemory, _ device: UInt64, _ count: Int, _ access: DMAAccess, isFirst: Bool
  ) -> UInt64? {
    unsafe SegmentHeader.makeCopies(header, of: memory).add(DMAAddress(device), count, access, isFirst: isFirst)
  }

  /// Brings what the device reads and has not come yet.
  func fetchCopies() throws(DMAFault) { try unsafe SegmentHeader.copies(header)?.fetch() }

  /// Segments so far.
  @inlinable public var segmentCount: Int { count }

  /// Appends the host memory behind `n` bytes of device addresses as a segment of its own.
  @inlinable @inline(__always) mutating func append(host: UInt64, count n: UInt64, device: UInt64) {
    if hasRoom || growForAppend() {
      put(host: host, from: device, through: device &+ (n &- 1))
    } else {
      byteCount &+= Int(truncatingIfNeeded: n)
    }
  }

  /// Whether one more segment fits as it is.
  @inlinable @inline(__always) var hasRoom: Bool { count &+ 4 < capacity }

  /// Appends a segment, for which there ``hasRoom``: what is behind the device addresses `first` through `last`.
  @inlinable @inline(__always) mutating func put(host: UInt64, from first: UInt64, through last: UInt64) {
    assert(hasRoom)
    let n = Int(truncatingIfNeeded: last &- first &+ 1)
    byteCount &+= n
    // Safe: the caller has checked the capacity; pairs are as large as segments, and follow `capacity` of them.
    let entry = unsafe SegmentHeader.entries(header) + count
    unsafe entry.pointee = iovec(iov_base: UnsafeMutableRawPointer(bitPattern: UInt(host)), iov_len: n)
    let pair = unsafe UnsafeMutableRawPointer(entry + capacity)
    unsafe store64(pair, first)
    unsafe store64(pair + 8, last)
    count &+= 1
  }

  /// Appends host memory that continues the last segment's descriptor: a part of that segment where it adjoins.
  @inlinable mutating func join(host: UInt64, count n: UInt64, device: UInt64) {
    // Safe: joining means that this call's descriptor has appended an entry already.
    let last = unsafe SegmentHeader.entries(header) + (count - 1)
    if unsafe UInt64(UInt(bitPattern: last.pointee.iov_base)) &+ UInt64(last.pointee.iov_len) == host, !overflowed {
      byteCount &+= Int(truncatingIfNeeded: n)
      unsafe last.pointee.iov_len &+= Int(truncatingIfNeeded: n)
      // Safe: the entry's pair, as in put.
      unsafe store64(UnsafeMutableRawPointer(last + capacity) + 8, device &+ (n &- 1))
    } else {
      append(host: host, count: n, device: device)
    }
  }

  /// A driver decides how many pieces its buffers have, and must not decide how much memory that costs us.
  @usableFromInline mutating func growForAppend() -> Bool {
    guard count < Self.growthLimit else {
      overflowed = true
      return false
    }
    grow()
    return true
  }

  @usableFromInline mutating func grow() {
    let fresh = unsafe SegmentHeader.allocate(capacity: capacity * 4)
    let (from, to) = unsafe (SegmentHeader.entries(header), SegmentHeader.entries(fresh))
    // Safe: `count` entries and their pairs are initialised; both are trivial.
    unsafe to.initialize(from: from, count: count)
    unsafe (to + capacity * 4).initialize(from: from + capacity, count: count)
    if let holds = unsafe header.pointee.holds { unsafe holds._withUnsafeGuaranteedRef { unsafe $0.add(fresh) } }
    // Moved: the segments point to them.
    unsafe fresh.pointee.copies = header.pointee.copies
    unsafe header.pointee.copies = nil
    unsafe SegmentHeader.free(header)
    unsafe header = fresh
    capacity = capacity * 4
  }

  /// What follows is device-writable.
  @inlinable public mutating func beginWritable() {
    readableCount = count
    readableBytes = byteCount
    if count &+ 6 >= capacity { grow() }
    count &+= 2
    writableStart = count
    byteCount = 0
  }

  /// Whether ``beginWritable()`` was called.
  @inlinable public var isWritable: Bool { writableStart >= 0 }

  /// Forgets everything.
  @inlinable public mutating func clear() {
    if hasCopies { unsafe SegmentHeader.dropCopies(header) }
    count = 0
    byteCount = 0
    writableStart = -1
    readableCount = 0
    readableBytes = 0
    overflowed = false
  }

  /// Writes both sides into the header, for the views to read.
  @inlinable @inline(__always) func settle() {
    let entries = unsafe SegmentHeader.entries(header)
    if isWritable {
      unsafe header.pointee.readable = SegmentSide(base: entries, segmentCount: readableCount, byteCount: readableBytes)
      unsafe header.pointee.writable = SegmentSide(
        base: entries + writableStart, segmentCount: count &- writableStart, byteCount: byteCount)
    } else {
      unsafe header.pointee.readable = SegmentSide(base: entries, segmentCount: count, byteCount: byteCount)
      unsafe header.pointee.writable = SegmentSide(base: entries, segmentCount: 0, byteCount: 0)
    }
  }

  /// The chain's memory, to be used from now on. With a fault neither side shows anything: the last device-writable
  /// byte of the list, if there is one, is where a status can still be written.
  ///
  /// - Parameter iotlb: what the list was resolved with, in the round under way; the list is from its pool.
  @inlinable @inline(__always) public consuming func seal(_ iotlb: borrowing IOTLB, fault: DMAFault?) -> ChainMemory {
    seal(iotlb.lease, fault: fault)
  }

  @inlinable @inline(__always) consuming func seal(_ lease: borrowing Lease, fault: DMAFault?) -> ChainMemory {
    settle()
    let header = unsafe self.header
    // Where the two spare entries are, too: their pairs are those of an earlier chain.
    let pairs = count | (writableStart &+ 1) &<< 32
    discard self
    unsafe SegmentHeader.publish(header, pairs: pairs, stamp: lease.stamp)
    unsafe header.pointee.fault = fault
    unsafe header.pointee.status = nil
    if fault != nil { unsafe Self.hide(header) }
    return unsafe ChainMemory(header)
  }

  @usableFromInline static func hide(_ header: UnsafeMutablePointer<SegmentHeader>) {
    let side = unsafe header.pointee.writable
    if unsafe side.segmentCount > 0 {
      // Safe: entries below `segmentCount` are initialised, none is empty, and all of their memory was resolved for
      // writing.
      let last = unsafe side.base[side.segmentCount - 1]
      unsafe header.pointee.status = last.iov_base! + (last.iov_len - 1)
    }
    unsafe header.pointee.readable.segmentCount = 0
    unsafe header.pointee.readable.byteCount = 0
    unsafe header.pointee.writable.segmentCount = 0
    unsafe header.pointee.writable.byteCount = 0
  }

  /// The device-readable side as it is now. Valid until the list changes or ends.
  public var readable: BufferSegments {
    settle()
    return unsafe BufferSegments(side: UnsafeMutableRawPointer(header).assumingMemoryBound(to: SegmentSide.self))
  }

  /// The device-writable side as it is now. Valid until the list changes or ends.
  public var writable: BufferSegments {
    settle()
    return unsafe BufferSegments(side: UnsafeMutableRawPointer(header).assumingMemoryBound(to: SegmentSide.self) + 1)
  }

  @inlinable consuming func release() -> UnsafeMutablePointer<SegmentHeader> {
    let header = unsafe self.header
    discard self
    return unsafe header
  }
}

/// Storage for chains, kept by a queue so that a request costs no allocation. One thread uses it.
@safe public struct SegmentPool: ~Copyable {
  @usableFromInline let blocks: UnsafeMutablePointer<UnsafeMutablePointer<SegmentHeader>>
  @usableFromInline var count = 0
  /// Bytes of what is kept, but for blocks of the smallest kind.
  private var spareBytes = 0
  @usableFromInline let limit: Int
  private let holds: QueueHolds?
  @usableFromInline static var smallest: Int { 32 }
  /// Storage for longer chains that is kept: one huge request must not be paid for by many small ones.
  private static var spareLimit: Int { 1 << 19 }

  /// A pool for lists that are never sealed.
  public init() { self.init(nil, keeping: 64) }

  /// - Parameters:
  ///   - holds: by which drains see the chains.
  ///   - limit: blocks that are kept.
  init(_ holds: QueueHolds?, keeping limit: Int) {
    self.limit = limit
    self.holds = holds
    // Safe: room for `limit` entries, of which `count` are initialised.
    unsafe blocks = .allocate(capacity: limit)
  }

  deinit {
    for i in 0..<count { unsafe SegmentHeader.free(blocks[i]) }
    unsafe blocks.deallocate()
  }

  /// An empty list, from storage given back earlier if there is some.
  @inlinable @inline(__always) public mutating func take() -> SegmentList {
    if count > 0 {
      count &-= 1
      // Safe: below `count`, hence initialised and ours.
      let block = unsafe blocks[count]
      if unsafe block.pointee.capacity != Self.smallest { unsafe uncount(block) }
      return unsafe SegmentList(block)
    }
    return fresh()
  }

  @usableFromInline @inline(never) mutating func uncount(_ block: UnsafeMutablePointer<SegmentHeader>) {
    spareBytes -= unsafe SegmentHeader.byteCount(capacity: block.pointee.capacity)
  }

  @usableFromInline @inline(never) func fresh() -> SegmentList {
    let block = unsafe SegmentHeader.allocate(capacity: Self.smallest)
    unsafe holds?.add(block)
    return unsafe SegmentList(block)
  }

  /// Keeps a list's storage for the next ``take()``.
  @inlinable public mutating func give(back list: consuming SegmentList) { unsafe keep(list.release()) }

  /// Ends a chain's hold on its mappings, and keeps its storage for the next ``take()``.
  @inlinable @inline(__always) public mutating func give(back memory: consuming ChainMemory) {
    unsafe keep(memory.release())
  }

  @inlinable @inline(__always) mutating func keep(_ block: UnsafeMutablePointer<SegmentHeader>) {
    if unsafe block.pointee.copies != nil { unsafe SegmentHeader.dropCopies(block) }
    guard unsafe block.pointee.capacity == Self.smallest || mayKeep(block), hasRoom else {
      // Safe: there is no other reference to it.
      unsafe SegmentHeader.free(block)
      return
    }
    // Safe: `count` is below the limit.
    unsafe (blocks + count).initialize(to: block)
    count &+= 1
  }

  @inlinable var hasRoom: Bool { count < limit }

  /// Whether larger storage may be kept, which is counted then.
  @usableFromInline @inline(never) mutating func mayKeep(_ block: UnsafeMutablePointer<SegmentHeader>) -> Bool {
    let bytes = unsafe SegmentHeader.byteCount(capacity: block.pointee.capacity)
    guard hasRoom, spareBytes + bytes <= Self.spareLimit else { return false }
    spareBytes += bytes
    return true
  }
}
