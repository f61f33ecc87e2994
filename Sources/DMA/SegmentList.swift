public import CLinux

/// The host memory behind one descriptor chain while it is being resolved: device-readable segments first, then
/// device-writable ones. Its storage goes back to the queue's ``SegmentPool`` when the chain is complete.
@safe @frozen public struct SegmentList: ~Copyable {
  // `storage` holds `capacity` entries. Two spare entries follow the readable segments and two the writable ones, so that
  // each side can be split twice (at a request's header and at its status) without moving.
  @usableFromInline var storage: UnsafeMutablePointer<iovec>
  @usableFromInline var capacity: Int
  @usableFromInline var count = 0
  @usableFromInline var byteCount = 0
  /// Where writable segments begin, once they do.
  @usableFromInline var writableStart = -1
  @usableFromInline var readableCount = 0
  /// More was appended than a list takes: what is in it is not the whole.
  @inlinable public var isFull: Bool { overflowed }
  @usableFromInline var overflowed = false
  /// Segments beyond which a list takes no more: 256 MiB in scattered pages.
  public static var maxSegments: Int { 1 << 16 }
  @usableFromInline var readableBytes = 0

  @usableFromInline init(storage: UnsafeMutablePointer<iovec>, capacity: Int) {
    unsafe self.storage = storage
    self.capacity = capacity
  }

  @inlinable deinit {
    // Safe: allocated by the pool (or by grow), given back or freed exactly once.
    unsafe storage.deallocate()
  }

  /// Segments so far.
  @inlinable public var segmentCount: Int { count }
  /// Bytes so far, both kinds.
  @inlinable public var totalBytes: Int { readableBytes + byteCount }

  /// Appends host memory, extending the last segment when `joining` and adjacent.
  @inlinable @inline(__always) mutating func append(host: UInt64, count n: UInt64, joining: Bool) {
    byteCount &+= Int(truncatingIfNeeded: n)
    if joining {
      // Safe: joining means that this call's descriptor has appended an entry already.
      let last = unsafe storage + (count - 1)
      if unsafe UInt64(UInt(bitPattern: last.pointee.iov_base)) &+ UInt64(last.pointee.iov_len) == host {
        unsafe last.pointee.iov_len &+= Int(truncatingIfNeeded: n)
        return
      }
    }
    if count + 4 >= capacity, !growForAppend() { return }
    // Safe: the capacity was just checked.
    unsafe storage[count] = iovec(iov_base: UnsafeMutableRawPointer(bitPattern: UInt(host)), iov_len: Int(truncatingIfNeeded: n))
    count &+= 1
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
    let bigger = capacity * 4
    // Safe: `count` entries are initialised; iovec is trivial.
    let fresh = UnsafeMutablePointer<iovec>.allocate(capacity: bigger)
    unsafe fresh.initialize(from: storage, count: count)
    unsafe storage.deallocate()
    unsafe storage = fresh
    capacity = bigger
  }

  /// What follows is device-writable.
  @inlinable public mutating func beginWritable() {
    readableCount = count
    readableBytes = byteCount
    if count + 6 >= capacity { grow() }
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

  /// The device-readable side. Valid while this list lives.
  @inlinable public var readable: BufferSegments {
    unsafe isWritable
      ? BufferSegments(base: storage, segmentCount: readableCount, byteCount: readableBytes)
      : BufferSegments(base: storage, segmentCount: count, byteCount: byteCount)
  }

  /// The device-writable side. Valid while this list lives.
  @inlinable public var writable: BufferSegments {
    unsafe isWritable
      ? BufferSegments(base: storage + writableStart, segmentCount: count - writableStart, byteCount: byteCount)
      : BufferSegments(base: storage, segmentCount: 0, byteCount: 0)
  }

  /// A view of nothing.
  @inlinable public var readableNothing: BufferSegments { unsafe BufferSegments(base: storage, segmentCount: 0, byteCount: 0) }

  @inlinable consuming func release() -> (UnsafeMutablePointer<iovec>, Int) {
    let storage = unsafe self.storage
    let capacity = self.capacity
    discard self
    return unsafe (storage, capacity)
  }
}

/// Storage for chains, kept by a queue so that a request costs no allocation. One thread uses it.
@safe public struct SegmentPool: ~Copyable {
  @usableFromInline let blocks: UnsafeMutablePointer<(UnsafeMutablePointer<iovec>, Int)>
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
    for i in 0..<count { unsafe blocks[i].0.deallocate() }
    unsafe blocks.deallocate()
  }

  /// An empty list, from storage given back earlier if there is some.
  @inlinable public mutating func take() -> SegmentList {
    if count > 0 {
      count &-= 1
      // Safe: below `count`, hence initialised and ours.
      return unsafe SegmentList(storage: blocks[count].0, capacity: blocks[count].1)
    }
    return fresh()
  }

  @usableFromInline func fresh() -> SegmentList {
    unsafe SegmentList(storage: .allocate(capacity: Self.smallest), capacity: Self.smallest)
  }

  /// Keeps a list's storage for the next ``take()``.
  @inlinable public mutating func give(back list: consuming SegmentList) {
    guard count < Self.limit, list.capacity <= Self.largest else { return }
    let (storage, capacity) = unsafe list.release()
    // Safe: `count` is below the limit.
    unsafe (blocks + count).initialize(to: (storage, capacity))
    count &+= 1
  }
}
