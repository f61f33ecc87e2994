internal import CLinux
public import DMA
internal import Glibc
internal import Synchronization

extension BlockFile {
  /// Most segments one asynchronous request can have (IOV_MAX). The calls of this file take any number.
  public static var maxSegments: Int { 1024 }

  /// Reads into the segments `range`, but their first `skipped` bytes, from `position` on.
  ///
  /// Goes straight into the driver's memory unless direct access needs an alignment that it lacks.
  /// - Returns: bytes read: fewer than asked for only at the end of the disk.
  public func read(
    into segments: borrowing BufferSegments, _ range: Range<Int>, skipping skipped: Int = 0, at position: UInt64
  ) throws(HostError) -> Int {
    if !isSuitable(segments, range, at: position) || skipped % positionAlignment != 0 {
      return try readAround(segments, range, skipping: skipped, at: position)
    }
    var done: UInt64 = 0
    let result = unsafe segments.withIOVectors(range) { vectors, count in
      // Safe: the vectors are the chain's, unchanged while `segments` is borrowed, and name memory its lease keeps
      // mapped.
      unsafe host_file_read(rawValue, vectors, count, UInt64(skipped), position, &done)
    }
    try check(result, "read", path)
    return Int(done)
  }

  /// Reads into all segments.
  public func read(into segments: borrowing BufferSegments, at position: UInt64) throws(HostError) -> Int {
    try read(into: segments, 0..<segments.segmentCount, at: position)
  }

  /// Writes the segments `range`, but their first `skipped` bytes, from `position` on.
  ///
  /// - Parameter durable: return only when it is on stable storage.
  /// - Throws: EINVAL outside the disk, EROFS, ENOSPC, EIO. Some of the bytes may have been written.
  public func write(
    from segments: borrowing BufferSegments, _ range: Range<Int>, skipping skipped: Int = 0, at position: UInt64,
    durable: Bool = false
  ) throws(HostError) {
    let count = byteCount(segments, range) - skipped
    guard count >= 0 else { throw HostError("write", errno: .invalidArgument, subject: path) }
    try checkChange("write", at: position, count: UInt64(count))
    if !isSuitable(segments, range, at: position) || skipped % positionAlignment != 0 {
      return try writeAround(segments, range, skipping: skipped, at: position, durable)
    }
    var done: UInt64 = 0
    let result = unsafe segments.withIOVectors(range) { vectors, count in
      // Safe: as in read(into:_:skipping:at:).
      unsafe host_file_write(rawValue, vectors, count, UInt64(skipped), position, durable ? 1 : 0, &done)
    }
    try check(result, "write", path)
  }

  /// Writes all segments.
  public func write(
    from segments: borrowing BufferSegments, at position: UInt64, durable: Bool = false
  ) throws(HostError) {
    try write(from: segments, 0..<segments.segmentCount, at: position, durable: durable)
  }

  /// Bytes in the segments `range`.
  public func byteCount(_ segments: borrowing BufferSegments, _ range: Range<Int>) -> Int {
    if range == 0..<segments.segmentCount { return segments.byteCount }
    // Safe: the vectors are read only, while `segments` is borrowed.
    return unsafe segments.withIOVectors(range) { vectors, count in Int(unsafe host_vectors_bytes(vectors, count)) }
  }

  /// Whether the host can move these segments without a copy.
  func isSuitable(_ segments: borrowing BufferSegments, _ range: Range<Int>, at position: UInt64) -> Bool {
    if !isDirect { return true }
    guard position % UInt64(positionAlignment) == 0 else { return false }
    // Safe: the vectors are read only, while `segments` is borrowed.
    return unsafe segments.withIOVectors(range) { vectors, count in
      unsafe host_vectors_aligned(vectors, count, UInt64(memoryAlignment), UInt64(positionAlignment)) != 0
    }
  }

  /// The bytes from `position` on, fewer than `count` only at the end of the disk: for looking at an image, not for
  /// requests.
  public func bytes(at position: UInt64, count: Int) throws(HostError) -> [UInt8] {
    let unit = UInt64(positionAlignment)
    let first = position / unit * unit
    let end = min(roundUp(position + UInt64(count), unit), roundUp(size, unit))
    guard first < end else { return [] }
    let buffer = AlignedBuffer(byteCount: Int(end - first), alignment: memoryAlignment)
    let here = try read(buffer, Int(end - first), at: first)
    let skipped = Int(position - first)
    guard here > skipped else { return [] }
    return buffer.withBytes(skipped..<min(here, skipped + count)) { span in span.indices.map { span[$0] } }
  }

  // Direct access through memory of ours

  private static var aroundLimit: UInt64 { 1 << 20 }

  private func readAround(
    _ segments: borrowing BufferSegments, _ range: Range<Int>, skipping skipped: Int, at position: UInt64
  ) throws(HostError) -> Int {
    let start = byteCount(segments, 0..<range.lowerBound) + skipped
    let total = byteCount(segments, range) - skipped
    guard total > 0, position < size else { return 0 }
    let end = position + min(UInt64(total), size - position)
    let unit = UInt64(positionAlignment)
    let buffer = AlignedBuffer(
      byteCount: Int(min(Self.aroundLimit, roundUp(end, unit) - position / unit * unit)), alignment: memoryAlignment)
    var at = position
    while at < end {
      let first = at / unit * unit
      let last = min(first + UInt64(buffer.byteCount), roundUp(end, unit))
      let here = try read(buffer, Int(last - first), at: first)
      let skip = Int(at - first)
      let usable = min(here - skip, Int(min(end, last) - at))
      if usable <= 0 { break }
      let copied = buffer.withBytes(skip..<skip + usable) { segments.copy($0, to: start + Int(at - position)) }
      at += UInt64(copied)
      if copied < usable || here < Int(last - first) { break }
    }
    return Int(at - position)
  }

  private func writeAround(
    _ segments: borrowing BufferSegments, _ range: Range<Int>, skipping skipped: Int, at position: UInt64,
    _ durable: Bool
  ) throws(HostError) {
    let start = byteCount(segments, 0..<range.lowerBound) + skipped
    let total = byteCount(segments, range) - skipped
    guard total > 0 else { return }
    let end = position + UInt64(total)
    let unit = UInt64(positionAlignment)
    let buffer = AlignedBuffer(
      byteCount: Int(min(Self.aroundLimit, roundUp(end, unit) - position / unit * unit)), alignment: memoryAlignment)
    var at = position
    while at < end {
      let first = at / unit * unit
      let last = min(first + UInt64(buffer.byteCount), roundUp(end, unit))
      let stop = min(end, last)
      let whole = at == first && stop == last
      if whole {
        try fill(buffer, from: segments, start + Int(at - position), 0..<Int(stop - at))
        try write(buffer, Int(last - first), at: first, durable)
      } else {
        try changePartially(buffer, first..<last) { buffer throws(HostError) in
          try fill(buffer, from: segments, start + Int(at - position), Int(at - first)..<Int(stop - first))
          try write(buffer, Int(last - first), at: first, durable)
        }
      }
      at = stop
    }
  }

  /// Reads the blocks at both ends of `blocks` and lets `body` change and write them, while no other thread does the
  /// same.
  func changePartially(
    _ buffer: borrowing AlignedBuffer, _ blocks: Range<UInt64>,
    _ body: (borrowing AlignedBuffer) throws(HostError) -> Void
  ) throws(HostError) {
    try partialBlocks.withLock { _ throws(HostError) in
      let unit = positionAlignment
      let length = Int(blocks.upperBound - blocks.lowerBound)
      buffer.clear()
      _ = try read(buffer, unit, at: blocks.lowerBound)
      if length > unit { _ = try read(buffer, unit, at: blocks.upperBound - UInt64(unit), to: length - unit) }
      try body(buffer)
    }
  }

  private func fill(
    _ buffer: borrowing AlignedBuffer, from segments: borrowing BufferSegments, _ offset: Int, _ place: Range<Int>
  ) throws(HostError) {
    let copied = buffer.withMutableBytes(place) { segments.copy(from: offset, into: &$0) }
    if copied != place.count { throw HostError("write", errno: .invalidArgument, subject: path) }
  }

  private func read(
    _ buffer: borrowing AlignedBuffer, _ count: Int, at position: UInt64, to offset: Int = 0
  ) throws(HostError) -> Int {
    var done: UInt64 = 0
    let result = unsafe buffer.withMemory(offset..<offset + count) { memory in
      // Safe: `memory` has `count` bytes, checked by withMemory.
      unsafe host_file_read_bytes(rawValue, memory, count, position, &done)
    }
    try check(result, "read", path)
    return Int(done)
  }

  func write(
    _ buffer: borrowing AlignedBuffer, _ count: Int, at position: UInt64, _ durable: Bool = false
  ) throws(HostError) {
    var done: UInt64 = 0
    let result = unsafe buffer.withMemory(0..<count) { memory in
      // Safe: as above.
      unsafe host_file_write_bytes(rawValue, memory, count, position, durable ? 1 : 0, &done)
    }
    try check(result, "write", path)
  }

  private func roundUp(_ value: UInt64, _ unit: UInt64) -> UInt64 {
    let rest = value % unit
    return rest == 0 ? value : value + (unit - rest)
  }
}
