internal import CLinux

/// Why host memory could not be mapped.
public struct MappingError: Error, Hashable, Sendable {
  /// The system's error number.
  public var code: Int32
}

/// Which file a descriptor is of, and how long it is now.
public struct FileIdentity: Hashable, Sendable {
  public let device: UInt64
  public let inode: UInt64
  public let byteCount: UInt64

  /// - Parameter descriptor: an open descriptor, which stays the caller's.
  public init(of descriptor: Int32) throws(MappingError) {
    var (device, inode, size, page): (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    // Safe: the out-pointers are locals that live through the call.
    let status = unsafe clx_file_identity(descriptor, &device, &inode, &size, &page)
    guard status == 0 else { throw MappingError(code: -status) }
    (self.device, self.inode, byteCount) = (device, inode, size)
  }
}

/// A run of this process's memory: a shared mapping of a file that a peer sent, or memory of our own. Ends with the
/// object.
///
/// Touching a file mapping whose file was truncated would raise SIGBUS; such a page turns into zeroes instead and
/// ``lostPages`` counts it, so that a front-end cannot end this process.
@safe public final class HostMapping: @unchecked Sendable {
  // Safe (unchecked Sendable): every field is immutable; the bytes are shared by nature and only touched through
  // cells and one-fetch copies.
  @usableFromInline let base: UnsafeMutableRawPointer
  /// Bytes.
  public let byteCount: Int
  /// Which file the bytes are, and where in it they start; nil for memory of our own.
  package let file: (device: UInt64, inode: UInt64, offset: UInt64)?
  private let unmapCount: Int
  private let lead: Int
  private let guardSlot: Int32

  /// Maps `byteCount` bytes of `descriptor` from `offset` on, shared. The descriptor may be closed afterwards. Neither
  /// has to be a multiple of a page, huge or not: whole pages around them are mapped.
  public init(descriptor: Int32, offset: UInt64, byteCount: Int, writable: Bool = true) throws(MappingError) {
    guard byteCount > 0, offset <= UInt64(Int64.max) - UInt64(byteCount) else { throw MappingError(code: 22) }
    var device: UInt64 = 0
    var inode: UInt64 = 0
    var size: UInt64 = 0
    var page: UInt64 = 0
    // Safe: the out-pointers are locals that live through the call.
    let status = unsafe clx_file_identity(descriptor, &device, &inode, &size, &page)
    guard status == 0 else { throw MappingError(code: -status) }
    // mmap wants the offset of a page, and munmap the end of one where pages are huge; front-ends may give any.
    let lead = Int(offset % page)
    let (reach, overflow) = (UInt64(byteCount) + UInt64(lead)).addingReportingOverflow(page - 1)
    guard !overflow, reach / page * page <= UInt64(Int.max) else { throw MappingError(code: 12) }
    let mapped = Int(reach / page * page)
    var code: Int32 = 0
    // Safe: as above.
    guard let start = unsafe clx_map_shared(descriptor, offset - UInt64(lead), mapped, writable ? 1 : 0, &code) else {
      throw MappingError(code: code)
    }
    _ = clx_bus_guard_install()
    self.guardSlot = unsafe clx_bus_guard_add(start, mapped, Int(page))
    unsafe self.base = start + lead
    self.byteCount = byteCount
    self.file = (device, inode, offset)
    self.unmapCount = mapped
    self.lead = lead
  }

  /// Maps `byteCount` bytes of zeroed memory of our own.
  public init(anonymous byteCount: Int) throws(MappingError) {
    guard byteCount > 0 else { throw MappingError(code: 22) }
    var code: Int32 = 0
    // Safe: the out-pointer is a local that lives through the call.
    guard let start = unsafe clx_map_anonymous(byteCount, &code) else { throw MappingError(code: code) }
    unsafe self.base = start
    self.byteCount = byteCount
    self.file = nil
    self.unmapCount = byteCount
    self.lead = 0
    self.guardSlot = -1
  }

  deinit {
    if guardSlot >= 0 { clx_bus_guard_remove(guardSlot) }
    // Safe: the mapping is ours and no reference to it is left.
    unsafe clx_unmap(base - lead, unmapCount)
  }

  /// Pages that were lost because the file got shorter than the mapping; a huge one counts as one.
  public var lostPages: UInt64 { guardSlot < 0 ? 0 : clx_bus_guard_hits(guardSlot) }

  package var hostStart: UInt64 { unsafe UInt64(UInt(bitPattern: base)) }

  /// Copies bytes out, one fetch each. Returns how many: fewer at the mapping's end.
  public func copy(from offset: Int, into bytes: inout MutableSpan<UInt8>) -> Int {
    guard offset >= 0, offset < byteCount else { return 0 }
    let count = min(bytes.count, byteCount - offset)
    guard count > 0 else { return 0 }
    // Safe: the source range was just checked; the destination span has at least `count` bytes.
    unsafe bytes.withUnsafeMutableBytes { to in unsafe clx_copy(to.baseAddress!, base + offset, count) }
    return count
  }

  /// Copies bytes in. Returns how many: fewer at the mapping's end.
  public func copy(_ bytes: Span<UInt8>, to offset: Int) -> Int {
    guard offset >= 0, offset < byteCount else { return 0 }
    let count = min(bytes.count, byteCount - offset)
    guard count > 0 else { return 0 }
    // Safe: the destination range was just checked; the source span has at least `count` bytes.
    unsafe bytes.withUnsafeBytes { from in unsafe clx_copy(base + offset, from.baseAddress!, count) }
    return count
  }

  /// A window of 64-, 32- and 16-bit cells over the mapping, for state shared between processes.
  public func cells(from offset: Int, byteCount count: Int) -> RingMemory? {
    guard offset >= 0, count >= 0, offset <= byteCount - count else { return nil }
    return unsafe RingMemory(owner: self, base: base + offset, byteCount: count)
  }
}
