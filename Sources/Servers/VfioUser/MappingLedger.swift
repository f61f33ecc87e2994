internal import Synchronization

/// What a client has done to its mappings, for the report. The control thread writes, any thread reads.
final class MappingLedger: Sendable {
  struct Counts {
    /// DMA_MAP that were done, and that were refused.
    var maps: UInt64 = 0
    var refusedMaps: UInt64 = 0
    /// DMA_UNMAP that were done.
    var unmaps: UInt64 = 0
    /// The most bytes that were mapped at a time.
    var peakBytes: UInt64 = 0
  }
  private let state = Mutex(Counts())

  var counts: Counts { state.withLock { $0 } }

  /// A new client is there.
  func restart() { state.withLock { $0 = Counts() } }

  /// A mapping was made; `bytes` are mapped now.
  func mapped(_ bytes: UInt64) {
    state.withLock { counts in
      counts.maps += 1
      counts.peakBytes = max(counts.peakBytes, bytes)
    }
  }
  func refused() { state.withLock { $0.refusedMaps += 1 } }
  func unmapped() { state.withLock { $0.unmaps += 1 } }
}
