internal import CLinux
internal import Glibc

extension BlockFile {
  /// Gives the range's space back to the host. What it reads as afterwards is undefined on a device, zeros in a file.
  ///
  /// - Throws: EOPNOTSUPP where the host cannot, EINVAL outside the disk or not in whole blocks of a device, EROFS.
  public func discard(at position: UInt64, count: UInt64) throws(HostError) {
    try checkChange("discard", at: position, count: count)
    if count == 0 { return }
    switch kind {
    case .regularFile: try check(host_file_punch(rawValue, position, count), "discard", path)
    case .blockDevice: try check(host_block_discard(rawValue, position, count), "discard", path)
    }
  }

  /// Makes the range read as zeros. With `unmap` it takes no space where the host can do that; without, it keeps its space.
  ///
  /// - Throws: EINVAL outside the disk or not in whole blocks of a device, ENOSPC, EIO, EROFS.
  public func writeZeroes(at position: UInt64, count: UInt64, unmap: Bool) throws(HostError) {
    try checkChange("write zeroes", at: position, count: count)
    if count == 0 { return }
    if unmap {
      // On a device this, too, only goes where the hardware promises zeros.
      let punched = host_file_punch(rawValue, position, count)
      if punched == 0 { return }
      if !isUnsupported(punched) { try check(punched, "write zeroes", path) }
    }
    let zeroed = kind == .blockDevice ? host_block_zero(rawValue, position, count) : host_file_zero(rawValue, position, count)
    if zeroed == 0 { return }
    if !isUnsupported(zeroed) { try check(zeroed, "write zeroes", path) }
    try writeZeroBytes(at: position, count: count)
  }

  /// Destroys the range's contents, copies that the device may have made included.
  ///
  /// - Throws: EOPNOTSUPP where the host cannot: always for a regular file.
  public func secureErase(at position: UInt64, count: UInt64) throws(HostError) {
    try checkChange("secure erase", at: position, count: count)
    guard kind == .blockDevice else { throw HostError("secure erase", errno: EOPNOTSUPP, subject: path) }
    if count == 0 { return }
    let erased = host_block_secure_erase(rawValue, position, count)
    if isUnsupported(erased) { throw HostError("secure erase", errno: EOPNOTSUPP, subject: path) }
    try check(erased, "secure erase", path)
  }

  private func isUnsupported(_ result: Int32) -> Bool {
    result == -EOPNOTSUPP || result == -ENOTTY || result == -ENOSYS
  }

  /// The slow way, for a file system that cannot zero a range (tmpfs).
  private func writeZeroBytes(at position: UInt64, count: UInt64) throws(HostError) {
    let zeros = AlignedBuffer(byteCount: Int(min(count, 1 << 20)), alignment: memoryAlignment)
    zeros.clear()
    var done: UInt64 = 0
    while done < count {
      let step = Int(min(count - done, UInt64(zeros.byteCount)))
      try write(zeros, step, at: position + done)
      done += UInt64(step)
    }
  }
}
