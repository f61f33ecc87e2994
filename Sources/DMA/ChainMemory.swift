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
@unsafe @frozen @usableFromInline struct SegmentHeader {
  @usableFromInline var readable: SegmentSide
  @usableFromInline var writable: SegmentSide
  @usableFromInline var capacity: Int
  /// The count of chains that the chain's lease is part of; nil while there is none.
  @usableFromInline var cell: UnsafeMutableRawPointer?
  /// Of a chain with a fault: its last device-writable byte, if that can be reached.
  @usableFromInline var status: UnsafeMutableRawPointer?
  @usableFromInline var fault: DMAFault?

  /// Segments begin so many bytes after the header does.
  @inlinable static var stride: Int { 128 }

  /// Storage for a header and `capacity` segments.
  static func allocate(capacity: Int) -> UnsafeMutablePointer<SegmentHeader> {
    assert(unsafe MemoryLayout<SegmentHeader>.size <= stride)
    let raw = unsafe UnsafeMutableRawPointer.allocate(byteCount: stride + capacity * MemoryLayout<iovec>.stride, alignment: 64)
    let header = unsafe raw.bindMemory(to: SegmentHeader.self, capacity: 1)
    let none = unsafe SegmentSide(base: entries(header), segmentCount: 0, byteCount: 0)
    // Safe: the storage was just made, and is large enough for both.
    unsafe header.initialize(to: SegmentHeader(readable: none, writable: none, capacity: capacity, cell: nil, status: nil, fault: nil))
    return unsafe header
  }

  @inlinable static func entries(_ header: UnsafeMutablePointer<SegmentHeader>) -> UnsafeMutablePointer<iovec> {
    // Safe: the segments follow the header in the same allocation, and iovec is trivial.
    unsafe (UnsafeMutableRawPointer(header) + stride).assumingMemoryBound(to: iovec.self)
  }
}

/// The host memory behind one descriptor chain, resolved, and the chain's hold on the mappings it was resolved through. The
/// hold ends when the value does: on the queue's thread, within a round or before the queue is destroyed. One thread uses it.
@safe @frozen public struct ChainMemory: ~Copyable {
  @usableFromInline let header: UnsafeMutablePointer<SegmentHeader>

  @inlinable init(_ header: UnsafeMutablePointer<SegmentHeader>) {
    unsafe self.header = header
  }

  @inlinable deinit {
    unsafe Self.end(header)
    // Safe: allocated by the pool or a list, given back or freed exactly once.
    unsafe header.deallocate()
  }

  /// Ends the hold on the mappings.
  @inlinable @inline(__always) static func end(_ header: UnsafeMutablePointer<SegmentHeader>) {
    // Safe: the cell is its lease's, which outlives the chain; one thread counts in it.
    guard let cell = unsafe header.pointee.cell else { return }
    unsafe storeRelease32(cell, load32(cell) &- 1)
    unsafe header.pointee.cell = nil
  }

  /// The device-readable side; nothing when there is a ``fault``.
  @inlinable public var readable: BufferSegments {
    _read {
      // Safe: the header lives as long as this value, which is borrowed while the view exists.
      let view = unsafe BufferSegments(side: UnsafeMutableRawPointer(header).assumingMemoryBound(to: SegmentSide.self))
      yield view
    }
  }

  /// The device-writable side; nothing when there is a ``fault``.
  @inlinable public var writable: BufferSegments {
    _read {
      // Safe: as above; the second side follows the first.
      let view = unsafe BufferSegments(side: UnsafeMutableRawPointer(header).assumingMemoryBound(to: SegmentSide.self) + 1)
      yield view
    }
  }

  /// Why some of the chain's memory cannot be reached, or nil.
  @inlinable public var fault: DMAFault? { unsafe header.pointee.fault }

  /// Writes the last device-writable byte, of a chain with a ``fault`` too. False when it cannot be reached.
  @inlinable public func writeStatus(_ status: UInt8) -> Bool {
    guard unsafe header.pointee.fault == nil else {
      guard let at = unsafe header.pointee.status else { return false }
      // Safe: resolved for writing, and held by this chain.
      unsafe at.storeBytes(of: status, as: UInt8.self)
      return true
    }
    let last = unsafe header.pointee.writable.byteCount - 1
    return writable.write(status, at: last)
  }

  /// Tells the dirty log that everything the device may have written was written.
  public func markDirty(_ log: DirtyLog) {
    writable.markDirty(log, count: writable.byteCount)
    if let status = unsafe header.pointee.status { log.mark(host: unsafe UInt64(UInt(bitPattern: status)), count: 1) }
  }

  /// Ends the hold, and yields the storage.
  @inlinable consuming func release() -> UnsafeMutablePointer<SegmentHeader> {
    let header = unsafe self.header
    discard self
    unsafe Self.end(header)
    return unsafe header
  }
}
