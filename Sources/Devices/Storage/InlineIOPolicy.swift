public import HostIO

/// Whether to do a request on the spot instead of handing it to the ring: worth it where the page cache answers.
///
/// A hot 4 KiB read alone costs half of what it costs through the ring, which is ahead only when it takes many at once;
/// a buffered write, which the kernel hands from the ring to a thread of its own, two thirds for any number of
/// requests. After a read that missed some reads go without the attempt, twice as many after each miss in a row.
@usableFromInline package struct InlineIOPolicy {
  @usableFromInline var isOn: Bool
  @usableFromInline let writes: Bool
  @usableFromInline var skip = 0
  @usableFromInline var misses = 0

  package init(isOn: Bool) {
    self.isOn = isOn
    writes = isOn
  }

  /// Whole pages only: part of one may have to be read from the disk first.
  @inlinable package func isWorthWriting(at position: UInt64, count: Int) -> Bool {
    writes && (position | UInt64(count)) & 4095 == 0
  }

  @inlinable package var isWorthTrying: Bool {
    mutating get {
      guard isOn else { return false }
      if skip == 0 { return true }
      skip -= 1
      return false
    }
  }

  @inlinable package mutating func learn(from result: BlockFile.ImmediateRead, wanted: Int) {
    switch result {
    case .read(wanted): misses = 0
    case .unsupported: isOn = false
    default:
      misses = min(misses + 1, 6)
      skip = (1 << misses) - 1
    }
  }
}
