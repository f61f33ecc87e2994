public import DMA

/// A space in which nothing is reachable: bus mastering is off, or the endpoint is attached to nothing.
public final class BlockedSpace: DMASpace {
  public let fence = TranslationFence()
  private let reason: DMAFault.Reason

  public init(_ reason: DMAFault.Reason = .busMasterDisabled) { self.reason = reason }

  public var dirtyLog: DirtyLog? { nil }

  public func translate(
    _ address: DMAAddress, for access: DMAAccess, waking waiter: (any TranslationWaiter)?
  ) throws(DMAInterruption) -> HostRun {
    throw .fault(DMAFault(address: address, access: access, reason: reason))
  }
}
