public import CLinux

/// The host memory behind one descriptor chain while it is being resolved: device-readable segments first, then
/// device-writable ones. ``seal(_:fault:)`` makes the chain's ``ChainMemory`` of it; otherwise its storage goes back to the
/// queue's ``SegmentPool``. One thread uses it.
@safe @frozen public struct SegmentList: ~Copyable {
  // The storage holds `capacity` entries. Two spare entries follow the readable segments and two the writable ones, so that
  // each side can be split twice (at a request's header and at its status) without moving.
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
  /// Segments beyond which a list takes no more: 256 MiB in scattered pages.
  public static var maxSegments: Int { 1 << 16 }

  @inlinable init(_ header: UnsafeMutablePointer<SegmentHeader>) {
    unsafe self.header = header
    capacity = unsafe header.pointee.capacity
  }

  @inlinable deinit {
    // Safe: allocated by the pool (or by grow), given back or freed exactly once.
    unsafe header.deallocate()
  }

  /// Segments so far.
  @inlinable public var segmentCount: Int { count }
  /// Bytes so far, both kinds.
  @inlinable public var totalBytes: Int { readableBytes + byteCount }

  /// Appends host memory as a segment of its own.
  @inlinable @inline(__always) mutating func append(host: UInt64, count n: UInt64) {
    byteCount &+= Int(truncatingIfNeeded: n)
    if count &+ 4 >= capacity, !growForAppend() { return }
    // Safe: the capacity was just checked.
    unsafe SegmentHeader.entries(header)[count] = iovec(
      iov_base: UnsafeMutableRawPointer(bitPattern: UInt(host)), iov_len: Int(truncatingIfNeeded: n))
    count &+= 1
  }

  /// Appends host memory that continues the last segment's descriptor: a part of that segment where it adjoins.
  @inlinable mutating func join(host: UInt64, count n: UInt64) {
    // Safe: joining means that this call's descriptor has appended an entry already.
    let last = unsafe SegmentHeader.entries(header) + (count - 1)
    if unsafe UInt64(UInt(bitPattern: last.pointee.iov_base)) &+ UInt64(last.pointee.iov_len) == host, !overflowed {
      byteCount &+= Int(truncatingIfNeeded: n)
      unsafe last.pointee.iov_len &+= Int(truncatingIfNeeded: n)
    } else {
      append(host: host, count: n)
    }
  }

  /// A driver decides how many pieces its buffers have, and must not decide how much memory that costs us.
  @usableFromInline mutating func growForAppend() -> Bool {
    guard count < Self.maxSegments else {
      overflowed = true
      return false
    }
    grow()
    return true
  }

  @usableFromInline mutating func grow() {
    let fresh = unsafe SegmentHeader.allocate(capacity: capacity * 4)
    // Safe: `count` entries are initialised; iovec is trivial.
    unsafe SegmentHeader.entries(fresh).initialize(from: SegmentHeader.entries(header), count: count)
    unsafe header.deallocate()
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
      unsafe header.pointee.writable = SegmentSide(base: entries + writableStart, segmentCount: count &- writableStart, byteCount: byteCount)
    } else {
      unsafe header.pointee.readable = SegmentSide(base: entries, segmentCount: count, byteCount: byteCount)
      unsafe header.pointee.writable = SegmentSide(base: entries, segmentCount: 0, byteCount: 0)
    }
  }

  /// The chain's memory, to be used from now on. With a fault neither side shows anything: the last device-writable byte of
  /// the list, if there is one, is where a status can still be written.
  ///
  /// - Parameter lease: the chain's hold on its mappings, which the result takes over.
  @inlinable public consuming func seal(_ lease: consuming ChainLease, fault: DMAFault?) -> ChainMemory {
    settle()
    let header = unsafe self.header
    discard self
    unsafe header.pointee.cell = lease.release()
    unsafe header.pointee.fault = fault
    unsafe header.pointee.status = nil
    if fault != nil { unsafe Self.hide(header) }
    return unsafe ChainMemory(header)
  }

  @usableFromInline static func hide(_ header: UnsafeMutablePointer<SegmentHeader>) {
    let side = unsafe header.pointee.writable
    if unsafe side.segmentCount > 0 {
      // Safe: entries below `segmentCount` are initialised, none is empty, and all of their memory was resolved for writing.
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
  @usableFromInline static var limit: Int { 64 }
  @usableFromInline static var smallest: Int { 32 }
  /// Larger storage is given back to the system: one huge request must not be paid for by 64 small ones.
  @usableFromInline static var largest: Int { 2048 }

  public init() {
    // Safe: room for `limit` entries, of which `count` are initialised.
    unsafe blocks = .allocate(capacity: Self.limit)
  }

  deinit {
    for i in 0..<count { unsafe blocks[i].deallocate() }
    unsafe blocks.deallocate()
  }

  /// An empty list, from storage given back earlier if there is some.
  @inlinable public mutating func take() -> SegmentList {
    if count > 0 {
      count &-= 1
      // Safe: below `count`, hence initialised and ours.
      return unsafe SegmentList(blocks[count])
    }
    return fresh()
  }

  @usableFromInline func fresh() -> SegmentList { unsafe SegmentList(SegmentHeader.allocate(capacity: Self.smallest)) }

  /// Keeps a list's storage for the next ``take()``.
  @inlinable public mutating func give(back list: consuming SegmentList) { unsafe keep(list.release()) }

  /// Ends a chain's hold on its mappings, and keeps its storage for the next ``take()``.
  @inlinable public mutating func give(back memory: consuming ChainMemory) { unsafe keep(memory.release()) }

  @inlinable mutating func keep(_ block: UnsafeMutablePointer<SegmentHeader>) {
    guard count < Self.limit, unsafe block.pointee.capacity <= Self.largest else {
      // Safe: nobody else has it.
      unsafe block.deallocate()
      return
    }
    // Safe: `count` is below the limit.
    unsafe (blocks + count).initialize(to: block)
    count &+= 1
  }
}
