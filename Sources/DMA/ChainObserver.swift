// What a chain names, for a space that takes translations back chain by chain.
extension IOTLB {
  /// Remembers that the chain being walked names `count` bytes at `address`.
  public mutating func note(_ address: DMAAddress, count: UInt64) {
    guard count > 0 else { return }
    let last = address.rawValue.addingReportingOverflow(count - 1)
    notes.append(address.rawValue...(last.overflow ? .max : last.partialValue))
  }

  /// How many pieces were noted since the last time.
  package var noteCount: Int { notes.count }

  /// What was noted since the last time.
  public mutating func takeNotes() -> [ClosedRange<UInt64>] {
    // A chain of tens of thousands of pieces is not to cost room for as many from then on.
    defer { notes.removeAll(keepingCapacity: notes.count <= 256) }
    return notes
  }

  /// Gives a chain's translations back.
  public mutating func forget(_ ranges: [ClosedRange<UInt64>]) {
    for range in ranges { space.forget(from: range.lowerBound, through: range.upperBound) }
    lastStart = 1
    lastEnd = 0
    other = HostRun(start: 1, last: 0, host: 0, permissions: [])
  }
}
