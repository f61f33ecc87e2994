public import DMA
import Synchronization

/// A space that refuses the accesses a test names, and otherwise forwards to the one it wraps.
public final class FaultingSpace: DMASpace {
  private struct State {
    var left: Int?
    var pages: Set<UInt64> = []
    var faults: [DMAFault] = []
  }
  private let inner: any DMASpace
  private let state: Mutex<State>

  /// - Parameter n: the look-up that fails, counted from 0; nil: none.
  public init(_ inner: any DMASpace, failing n: Int? = nil) {
    self.inner = inner
    state = Mutex(State(left: n))
  }

  public var fence: TranslationFence { inner.fence }
  public var dirtyLog: DirtyLog? { inner.dirtyLog }

  /// Makes the page around an address unreachable from the next generation on.
  public func fail(_ address: DMAAddress) {
    state.withLock { _ = $0.pages.insert(address.rawValue >> 12) }
    fence.drain()
  }

  /// Nothing fails any more.
  public func heal() {
    state.withLock {
      $0.pages = []
      $0.left = nil
    }
  }

  public var faults: [DMAFault] { state.withLock { $0.faults } }

  public func translate(
    _ address: DMAAddress, for access: DMAAccess, waking waiter: (any TranslationWaiter)?
  ) throws(DMAInterruption) -> HostRun {
    let refused = state.withLock { state in
      if state.pages.contains(address.rawValue >> 12) { return true }
      guard let left = state.left else { return false }
      state.left = left > 0 ? left - 1 : nil
      return left == 0
    }
    if refused { throw .fault(DMAFault(address: address, access: access, reason: .unmapped)) }
    let run = try inner.translate(address, for: access, waking: waiter)
    // One page at a time, so that a page that fails is not covered by a run around it.
    let page = address.rawValue & ~4095
    return run.narrowed(toPage: page) ?? run
  }

  public var ledger: LookUpStatistics? { inner.ledger }
  public func report(_ fault: DMAFault) {
    state.withLock { $0.faults.append(fault) }
    inner.report(fault)
  }
}

/// A space that records calls and answers.
public final class RecordingSpace: DMASpace {
  public struct LookUp: Hashable, Sendable {
    public var address: DMAAddress
    public var access: DMAAccess
  }
  private let inner: any DMASpace
  private let log = Mutex<(lookUps: [LookUp], faults: [DMAFault])>(([], []))

  public init(_ inner: any DMASpace) { self.inner = inner }

  public var fence: TranslationFence { inner.fence }
  public var dirtyLog: DirtyLog? { inner.dirtyLog }
  public var lookUps: [LookUp] { log.withLock { $0.lookUps } }
  public var faults: [DMAFault] { log.withLock { $0.faults } }
  public func forget() { log.withLock { $0 = ([], []) } }

  public func translate(
    _ address: DMAAddress, for access: DMAAccess, waking waiter: (any TranslationWaiter)?
  ) throws(DMAInterruption) -> HostRun {
    log.withLock { $0.lookUps.append(LookUp(address: address, access: access)) }
    return try inner.translate(address, for: access, waking: waiter)
  }

  public var ledger: LookUpStatistics? { inner.ledger }
  public func report(_ fault: DMAFault) {
    log.withLock { $0.faults.append(fault) }
    inner.report(fault)
  }
}

extension HostRun {
  /// The page at `address` alone, if the run covers it whole.
  func narrowed(toPage address: UInt64) -> HostRun? {
    guard contains(DMAAddress(address)), contains(DMAAddress(address | 4095)) else { return nil }
    return part(
      from: address &- firstAddress.rawValue, count: 4096, seenFrom: DMAAddress(address), permissions: permissions)
  }
}
