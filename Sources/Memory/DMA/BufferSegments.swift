public import CLinux

/// Host memory behind one side of a chain, in order. Copies in and out; never hands out a pointer or a span, because
/// the driver may write the memory at any time.
///
/// A view of the chain's storage: it cannot be copied out of the chain, and must not be used after it.
@safe @frozen public struct BufferSegments: ~Copyable {
  // Safe to use: the code that makes a view keeps the storage alive for as long as it lends it.
  @usableFromInline let side: UnsafeMutablePointer<SegmentSide>

  @inlinable init(side: UnsafeMutablePointer<SegmentSide>) {
    unsafe self.side = side
  }

  @inlinable public var segmentCount: Int { unsafe side.pointee.segmentCount }
  @inlinable public var byteCount: Int { unsafe side.pointee.byteCount }
  @inlinable var base: UnsafeMutablePointer<iovec> { unsafe side.pointee.base }

  /// Copies bytes out from `offset` on, one fetch each. Returns how many: fewer at the end.
  public func copy(from offset: Int, into bytes: inout MutableSpan<UInt8>) -> Int {
    unsafe bytes.withUnsafeMutableBytes { to in
      unsafe walk(offset, to.count) { at, p, n in
        // Safe: walk yields parts of the segments and offsets below `to.count`.
        unsafe clx_copy(to.baseAddress! + at, p, n)
      }
    }
  }

  /// Copies bytes in from `offset` on. Returns how many: fewer at the end.
  public func copy(_ bytes: Span<UInt8>, to offset: Int) -> Int {
    unsafe bytes.withUnsafeBytes { from in
      unsafe walk(offset, from.count) { at, p, n in
        // Safe: as above.
        unsafe clx_copy(p, from.baseAddress! + at, n)
      }
    }
  }

  /// Writes `count` zero bytes from `offset` on. Returns how many: fewer at the end.
  public func zero(from offset: Int, count: Int) -> Int {
    unsafe walk(offset, count) { _, p, n in unsafe clx_zero(p, n) }
  }

  /// A little-endian integer at `offset`, or nil when it does not fit.
  @inlinable public func read<T: FixedWidthInteger>(_ type: T.Type, at offset: Int) -> T? {
    let size = MemoryLayout<T>.size
    guard offset >= 0, offset <= byteCount - size else { return nil }
    var value: T = 0
    unsafe withUnsafeMutableBytes(of: &value) { to in
      let first = unsafe base[0]
      if unsafe offset + size <= first.iov_len {
        // Safe: inside the first segment, which exists because there are bytes. The size is known, so this is one load.
        unsafe clx_copy(to.baseAddress!, first.iov_base! + offset, size)
        return
      }
      _ = unsafe walk(offset, size) { at, p, n in
        // Safe: as in copy(from:into:).
        unsafe clx_copy(to.baseAddress! + at, p, n)
      }
    }
    return T(littleEndian: value)
  }

  /// Writes a little-endian integer at `offset`. False when it does not fit.
  @inlinable public func write<T: FixedWidthInteger>(_ value: T, at offset: Int) -> Bool {
    let size = MemoryLayout<T>.size
    guard offset >= 0, offset <= byteCount - size else { return false }
    let end = segmentCount - 1
    let last = unsafe base[end]
    let lastStart = unsafe byteCount - last.iov_len
    unsafe withUnsafeBytes(of: value.littleEndian) { from in
      if offset >= lastStart {
        // Safe: inside the last segment, which exists because there are bytes: where a status goes. One store.
        unsafe clx_copy(last.iov_base! + (offset - lastStart), from.baseAddress!, size)
        return
      }
      _ = unsafe walk(offset, size) { at, p, n in
        // Safe: as in copy(from:into:).
        unsafe clx_copy(p, from.baseAddress! + at, n)
      }
    }
    return true
  }

  /// Calls `body` with (offset from the start of the walk, memory, bytes) for each piece of the range. Returns the
  /// bytes walked.
  @inlinable func walk(_ offset: Int, _ count: Int, _ body: (Int, UnsafeMutableRawPointer, Int) -> Void) -> Int {
    guard offset >= 0, count > 0, offset < byteCount else { return 0 }
    let total = min(count, byteCount - offset)
    var skip = offset
    var done = 0
    var i = 0
    while done < total {
      // Safe: the segments' lengths add up to byteCount, so `i` stays below segmentCount while done < total.
      let segment = unsafe base[i]
      i &+= 1
      if unsafe skip >= segment.iov_len {
        unsafe skip -= segment.iov_len
        continue
      }
      let n = unsafe min(segment.iov_len - skip, total - done)
      unsafe body(done, segment.iov_base! + skip, n)
      skip = 0
      done += n
    }
    return done
  }

  /// Makes `offset` the start of a segment and returns that segment's index. At most two offsets inside segments per
  /// side of a chain: that is what its storage has room for. nil beyond the end or when the room is used up.
  package func split(at offset: Int) -> Int? {
    guard offset >= 0, offset <= byteCount else { return nil }
    var left = offset
    for i in 0..<segmentCount {
      if left == 0 { return i }
      let length = unsafe base[i].iov_len
      if left >= length {
        left -= length
        continue
      }
      guard unsafe side.pointee.splits < 2 else { return nil }
      unsafe side.pointee.splits += 1
      // Safe: two spare entries follow each side's segments; see SegmentList.
      unsafe (base + i + 2).update(from: base + i + 1, count: segmentCount - i - 1)
      unsafe base[i + 1] = iovec(iov_base: base[i].iov_base! + left, iov_len: length - left)
      unsafe base[i].iov_len = left
      unsafe side.pointee.segmentCount += 1
      return i + 1
    }
    return left == 0 ? segmentCount : nil
  }

  /// The vectors of segments `range`, for a system call. They stay where they are, and unchanged, while the chain
  /// lives.
  package func withIOVectors<R>(_ range: Range<Int>, _ body: (UnsafePointer<iovec>, Int) -> R) -> R {
    precondition(range.lowerBound >= 0 && range.upperBound <= segmentCount)
    return unsafe body(base + range.lowerBound, range.count)
  }

  /// Marks the first `count` bytes in the dirty log.
  package func markDirty(_ log: DirtyLog, count: Int) {
    _ = unsafe walk(0, count) { _, p, n in log.mark(host: UInt64(UInt(bitPattern: p)), count: n) }
  }
}
