/// Which device addresses a run covers. Where its host memory is stays inside this module.
extension HostRun {
  /// The first address of the run.
  public var firstAddress: DMAAddress { DMAAddress(start) }

  /// Bytes; 0 for a run over all 2^64.
  public var byteCount: UInt64 { last &- start &+ 1 }

  /// Whether `address`, which is in both, leads to the same host memory in this run as in `other`.
  package func leads(_ address: DMAAddress, whereItDoesIn other: HostRun) -> Bool {
    host &+ (address.rawValue &- start) == other.host &+ (address.rawValue &- other.start)
  }

  /// Whether the byte at `address` is in the run.
  public func contains(_ address: DMAAddress) -> Bool {
    address.rawValue >= start && address.rawValue <= last
  }

  /// Whether one of the bytes `first` through `last` is in the run.
  public func overlaps(from first: UInt64, through last: UInt64) -> Bool {
    start <= last && first <= self.last
  }

  /// Whether the run consists of whole 4 KiB pages on both sides, as ``TranslationTable`` keeps them.
  public var isWholePages: Bool { start & 4095 == 0 && host & 4095 == 0 && last & 4095 == 4095 }
}
