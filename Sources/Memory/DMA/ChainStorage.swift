// What a chain's storage has room for: the measure of what it costs.

extension ChainMemory {
  /// Segments that there is room for.
  @inlinable package var capacity: Int {
    // Safe: the header lives as long as this value.
    unsafe header.pointee.capacity
  }
}

extension SegmentList {
  /// Segments that there is room for.
  @inlinable package var room: Int { capacity }
}
