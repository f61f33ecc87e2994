internal import Synchronization

/// Whether completed writes of a disk may be volatile until a flush, where the driver can configure that (§5.2.5,
/// §5.2.6.2).
///
/// A driver goes by what it read or wrote, and its next back-end may not know that: one that takes over from one that
/// died knows neither what the driver read there nor what it wrote, and a driver that migrated read another device. So
/// writeback holds only when this process has shown it to the driver before it started, or the driver has chosen it
/// here. Until then writes are stable when they complete, which is right for every driver.
///
/// Any thread may use it.
package final class BlockCacheMode: Sendable {
  /// The lowest bit says whether writes may be volatile.
  private enum Mode {
    static let writethrough: UInt8 = 0
    /// The driver wrote so.
    static let writeback: UInt8 = 1
    /// It would be writeback, but no driver knows.
    static let untold: UInt8 = 2
    /// A driver read so before it started.
    static let told: UInt8 = 3
  }
  private let mode: Atomic<UInt8>
  private let uses = Mutex((now: 0, periods: 0))

  init(writeback: Bool) { mode = Atomic(writeback ? Mode.untold : Mode.writethrough) }

  /// Whether a write may be volatile when it completes.
  package var isWriteback: Bool { mode.load(ordering: .relaxed) & 1 != 0 }

  /// What the driver reads. Before any queue runs, what it reads holds from then on.
  package func tell() -> Bool {
    uses.withLock { uses in
      if uses.now == 0 { _ = mode.compareExchange(expected: Mode.untold, desired: Mode.told, ordering: .relaxed) }
    }
    return isWriteback
  }

  /// The driver's choice, or a predecessor's state.
  package func set(writeback: Bool) { mode.store(writeback ? Mode.writeback : Mode.writethrough, ordering: .relaxed) }

  /// A queue goes on where another process stopped, so the driver that read the field here may be another one.
  fileprivate func takeOver() {
    uses.withLock { uses in
      // Later on the process that stopped was this one.
      if uses.periods == 1 { _ = mode.compareExchange(expected: Mode.told, desired: Mode.untold, ordering: .relaxed) }
    }
  }

  fileprivate func begin() {
    uses.withLock { uses in
      if uses.now == 0 { uses.periods += 1 }
      uses.now += 1
    }
  }

  fileprivate func end() { uses.withLock { $0.now -= 1 } }
}

/// One queue's use of a cache mode, as long as the object lives. One thread uses it.
package final class BlockCacheUse {
  private let mode: BlockCacheMode
  private var isFresh = true

  package init(_ mode: BlockCacheMode) {
    self.mode = mode
    mode.begin()
  }

  deinit { mode.end() }

  /// To be called with where the queue stands, before its requests.
  @inline(__always)
  package func look(isAtStart: @autoclosure () -> Bool) {
    guard isFresh else { return }
    isFresh = false
    if !isAtStart() { mode.takeOver() }
  }
}
