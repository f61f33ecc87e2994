/// Private memory with an alignment, for what cannot go straight to or from a driver's.
@safe struct AlignedBuffer: ~Copyable {
  private let base: UnsafeMutableRawPointer
  let byteCount: Int

  /// `alignment` is a power of two.
  init(byteCount: Int, alignment: Int) {
    // Safe: freed in deinit, by the only owner.
    unsafe base = .allocate(byteCount: byteCount, alignment: max(alignment, 64))
    self.byteCount = byteCount
  }

  deinit { unsafe base.deallocate() }

  func clear() {
    // Safe: the whole allocation.
    unsafe base.initializeMemory(as: UInt8.self, repeating: 0, count: byteCount)
  }

  /// Calls `body` with the memory, which does not outlive the call.
  func withMemory<R: ~Copyable, E>(_ range: Range<Int>, _ body: (UnsafeMutableRawPointer) throws(E) -> R) throws(E) -> R
  {
    precondition(range.lowerBound >= 0 && range.upperBound <= byteCount)
    // Safe: the range was just checked.
    return try unsafe body(base + range.lowerBound)
  }

  /// Calls `body` with bytes of it that were written before.
  func withBytes<R>(_ range: Range<Int>, _ body: (Span<UInt8>) -> R) -> R {
    precondition(range.lowerBound >= 0 && range.upperBound <= byteCount)
    // Safe: the range was just checked, and the span stays in the call.
    return unsafe body(
      UnsafeBufferPointer(start: (base + range.lowerBound).assumingMemoryBound(to: UInt8.self), count: range.count).span
    )
  }

  /// Calls `body` with bytes of it to write.
  func withMutableBytes<R>(_ range: Range<Int>, _ body: (inout MutableSpan<UInt8>) -> R) -> R {
    precondition(range.lowerBound >= 0 && range.upperBound <= byteCount)
    // Safe: as above, and no one else holds a reference to the memory.
    let memory = unsafe UnsafeMutableBufferPointer(
      start: (base + range.lowerBound).assumingMemoryBound(to: UInt8.self), count: range.count)
    var span = unsafe memory.mutableSpan
    return body(&span)
  }
}
