internal import CLinux

/// A queue's own memory. Storage that only huge requests need is a mapping of its own and not on the heap: heaps, one
/// for each thread, keep memory that was freed, so the limit on what a driver can make us use would not hold.
enum LargeStorage {
  /// Bytes from which on memory is mapped.
  static var threshold: Int { 128 << 10 }

  /// Memory of unspecified contents, aligned to 64 bytes, until ``free(_:byteCount:)``.
  static func allocate(byteCount: Int) -> UnsafeMutableRawPointer {
    guard byteCount >= threshold else { return .allocate(byteCount: byteCount, alignment: 64) }
    var code: Int32 = 0
    // Safe: the out-pointer is a local that lives through the call.
    guard let mapped = unsafe clx_map_anonymous(byteCount, &code) else { fatalError("no memory: error \(code)") }
    return unsafe mapped
  }

  /// Gives back what ``allocate(byteCount:)`` gave for the same `byteCount`.
  static func free(_ memory: UnsafeMutableRawPointer, byteCount: Int) {
    // Safe: the count says how it was made, and it is used no more.
    if byteCount >= threshold { unsafe clx_unmap(memory, byteCount) } else { unsafe memory.deallocate() }
  }
}
