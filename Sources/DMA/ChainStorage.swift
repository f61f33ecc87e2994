// What a chain's storage has room for: the measure of what it costs.

extension ChainMemory {
  /// Segments that there is room for.
  package var capacity: Int { unsafe header.pointee.capacity }
}

extension SegmentList {
  /// Segments that there is room for.
  package var room: Int { capacity }
}
