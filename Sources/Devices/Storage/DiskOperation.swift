/// What is done to ranges of a disk.
@usableFromInline package enum DiskRangeAction {
  case discard, writeZeroes, secureErase
}

/// A range of a disk, in bytes.
@usableFromInline package struct DiskRange {
  package var position: UInt64
  package var count: UInt64
  /// Whether writing zeroes may give its space back.
  package var mayUnmap: Bool

  package init(position: UInt64, count: UInt64, mayUnmap: Bool) {
    self.position = position
    self.count = count
    self.mayUnmap = mayUnmap
  }
}

/// What the host is to do for a request of a driver, of any device.
@usableFromInline package struct DiskOperation {
  @usableFromInline package enum Kind {
    /// The first `count` device-writable bytes come from `position`.
    case read
    /// `count` device-readable bytes go to `position`.
    case write(durable: Bool)
    case flush
    /// `count` ranges, which the device finds in the request.
    case ranges(DiskRangeAction)
  }

  @usableFromInline package let kind: Kind
  /// Where on the disk the data are. Bytes.
  @usableFromInline package var position: UInt64
  /// Bytes of data; ranges if it is a request of those.
  @usableFromInline package var count: Int

  @inlinable package init(kind: Kind, position: UInt64 = 0, count: Int = 0) {
    self.kind = kind
    self.position = position
    self.count = count
  }

  @inlinable package var isRead: Bool {
    if case .read = kind { return true }
    return false
  }

  @inlinable package var isFlush: Bool {
    if case .flush = kind { return true }
    return false
  }
}
