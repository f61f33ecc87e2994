internal import CLinux
internal import Glibc

extension BlockFile {
  /// Gives the range's space back to the host, as far as it is whole blocks. What it reads as afterwards is undefined
  /// on a device, zeros in a file.
  ///
  /// - Throws: EOPNOTSUPP where the host cannot, EINVAL outside the disk, EROFS.
  public func discard(at position: UInt64, count: UInt64) throws(HostError) {
    try checkChange("discard", at: position, count: count)
    let blocks = wholeBlocks(position, count)
    if blocks.isEmpty { return }
    let length = blocks.upperBound - blocks.lowerBound
    switch kind {
    case .regularFile: try check(host_file_punch(rawValue, blocks.lowerBound, length), "discard", path)
    case .blockDevice: try check(host_block_discard(rawValue, blocks.lowerBound, length), "discard", path)
    }
  }

  /// Makes the range read as zeros. With `unmap` it takes no space where the host can do that; without, it keeps its
  /// space.
  ///
  /// - Throws: EINVAL outside the disk, ENOSPC, EIO, EROFS.
  public func writeZeroes(at position: UInt64, count: UInt64, unmap: Bool) throws(HostError) {
    try checkChange("write zeroes", at: position, count: count)
    let blocks = wholeBlocks(position, count)
    try writeZeroBytes(at: position, count: blocks.lowerBound - position)
    if blocks.isEmpty { return }
    try zeroBlocks(at: blocks.lowerBound, count: blocks.upperBound - blocks.lowerBound, unmap: unmap)
    try writeZeroBytes(at: blocks.upperBound, count: position + count - blocks.upperBound)
  }

  /// What of a range of the disk the host gives back or zeroes by itself: in a file all of it; on a device, and in a
  /// file with direct access, where another request may be about to write the rest of a block, whole blocks. Empty, and
  /// at the end of the range, if it has none.
  private func wholeBlocks(_ position: UInt64, _ count: UInt64) -> Range<UInt64> {
    let unit = UInt64(kind == .blockDevice ? max(geometry.logicalBlock, positionAlignment) : positionAlignment)
    let end = position + count
    let last = end - end % unit
    let first = position + (unit - position % unit) % unit
    return first < last ? first..<last : end..<end
  }

  /// Whether a range of the disk consists of whole blocks.
  func isWholeBlocks(_ position: UInt64, _ count: UInt64) -> Bool {
    let blocks = wholeBlocks(position, count)
    return blocks.lowerBound == position && blocks.upperBound - position == count
  }

  private func zeroBlocks(at position: UInt64, count: UInt64, unmap: Bool) throws(HostError) {
    if unmap {
      // On a device this, too, only goes where the hardware promises zeros.
      let punched = host_file_punch(rawValue, position, count)
      if punched == 0 { return }
      if !isUnsupported(punched) { try check(punched, "write zeroes", path) }
    }
    let zeroed =
      kind == .blockDevice ? host_block_zero(rawValue, position, count) : host_file_zero(rawValue, position, count)
    if zeroed == 0 { return }
    if !isUnsupported(zeroed) { try check(zeroed, "write zeroes", path) }
    try writeZeroBytes(at: position, count: count)
  }

  /// Destroys the range's contents, copies that the device may have made included.
  ///
  /// - Throws: EOPNOTSUPP where the host cannot: always for a regular file.
  public func secureErase(at position: UInt64, count: UInt64) throws(HostError) {
    try checkChange("secure erase", at: position, count: count)
    guard kind == .blockDevice else { throw HostError("secure erase", errno: .notSupported, subject: path) }
    if count == 0 { return }
    let erased = host_block_secure_erase(rawValue, position, count)
    if isUnsupported(erased) { throw HostError("secure erase", errno: .notSupported, subject: path) }
    try check(erased, "secure erase", path)
  }

  private func isUnsupported(_ result: Int32) -> Bool {
    result == -EOPNOTSUPP || result == -ENOTTY || result == -ENOSYS
  }

  /// The slow way, for a file system that cannot zero a range (tmpfs), and for parts of blocks.
  private func writeZeroBytes(at position: UInt64, count: UInt64) throws(HostError) {
    if count == 0 { return }
    let unit = UInt64(positionAlignment)
    let zeros = AlignedBuffer(byteCount: Int(max(min(count - count % unit, 1 << 20), unit)), alignment: memoryAlignment)
    zeros.clear()
    let end = position + count
    var at = position
    while at < end {
      let first = at - at % unit
      if first == at, end - at >= unit {
        let step = min(end - at - (end - at) % unit, UInt64(zeros.byteCount))
        try write(zeros, Int(step), at: at)
        at += step
      } else {
        let stop = min(end, first + unit)
        let block = AlignedBuffer(byteCount: Int(unit), alignment: memoryAlignment)
        try changePartially(block, first..<first + unit) { block throws(HostError) in
          block.withMutableBytes(Int(at - first)..<Int(stop - first)) { bytes in
            for i in bytes.indices { bytes[i] = 0 }
          }
          try write(block, Int(unit), at: first)
        }
        at = stop
      }
    }
  }
}
