/// The host memory behind one descriptor chain, resolved, and the chain's hold on the mappings it was resolved through.
/// The hold ends when the value does: on the queue's thread, within a round or before the queue is destroyed. One
/// thread uses it.
@safe @frozen public struct ChainMemory: ~Copyable {
  @usableFromInline let header: UnsafeMutablePointer<SegmentHeader>

  @inlinable init(_ header: UnsafeMutablePointer<SegmentHeader>) {
    unsafe self.header = header
  }

  @inlinable deinit {
    unsafe SegmentHeader.unpublish(header)
    // Safe: allocated by the pool or a list, given back or freed exactly once.
    unsafe SegmentHeader.free(header)
  }

  /// The device-readable side; nothing when there is a ``fault``.
  @inlinable public var readable: BufferSegments {
    _read {
      // Safe: the header lives as long as this value, which is borrowed while the view exists.
      let view = unsafe BufferSegments(side: SegmentHeader.sides(header))
      yield view
    }
  }

  /// The device-writable side; nothing when there is a ``fault``.
  @inlinable public var writable: BufferSegments {
    _read {
      // Safe: as above; the second side follows the first.
      let view = unsafe BufferSegments(side: SegmentHeader.sides(header) + 1)
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

  /// Whether some of it is a copy of memory that another process has.
  @inlinable public var hasCopies: Bool { unsafe header.pointee.copies != nil }

  /// Pages of such copies.
  package var copiedPages: Int { unsafe SegmentHeader.copies(header)?.pages ?? 0 }

  /// What has to be sent, before the driver hears of the chain, of a device's writes to copies: the first `written`
  /// bytes of the device-writable side, and its last byte.
  public func remoteWrites(first written: Int) -> [RemoteAccess] {
    unsafe SegmentHeader.copies(header)?.writes(first: written) ?? []
  }

  /// Marks everything that the device may have written in the dirty log.
  public func markDirty(_ log: DirtyLog) {
    writable.markDirty(log, count: writable.byteCount)
    if let status = unsafe header.pointee.status { log.mark(host: UInt64(UInt(bitPattern: status)), count: 1) }
  }

  /// Ends the hold, and yields the storage.
  @inlinable consuming func release() -> UnsafeMutablePointer<SegmentHeader> {
    let header = unsafe self.header
    discard self
    unsafe SegmentHeader.unpublish(header)
    return unsafe header
  }
}
