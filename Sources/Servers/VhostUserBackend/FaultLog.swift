internal import DMA
internal import Logging
internal import Synchronization
internal import Virtio

/// Puts refused accesses into the log and into `ServingReport`, with their cause. Queue threads call it: a guest
/// can have as many faults as it likes, so most of them are only counted.
final class FaultLog: Sendable {
  private struct State {
    var next: ContinuousClock.Instant?
    var leftOut: UInt64 = 0
  }
  private let state = Mutex(State())
  private let log: Logger
  private let report: BackendReport
  /// Lines are at least this far apart.
  private static let interval = Duration.seconds(1)

  init(_ report: BackendReport, _ log: Logger) {
    self.report = report
    self.log = log
  }

  /// An access was refused that went by `path`.
  func refused(_ fault: DMAFault, _ path: AddressPath) {
    report.faulted(fault, path)
    let now = ContinuousClock.now
    let leftOut: UInt64? = state.withLock { state in
      if let next = state.next, now < next {
        state.leftOut &+= 1
        return nil
      }
      state.next = now + Self.interval
      defer { state.leftOut = 0 }
      return state.leftOut
    }
    guard let leftOut else { return }
    log.warning("access refused: \(Self.words(fault, path))\(leftOut > 0 ? " (and \(leftOut) others before it)" : "")")
  }

  /// The refusal and what it comes from.
  static func words(_ fault: DMAFault, _ path: AddressPath) -> String {
    switch (path, fault.reason) {
    case (.physical, .unmapped):
      "\(fault): the driver is wrong, or not all of the guest's memory is shared. \(SharingAdvice.remedy)"
    case (.platform, .unmapped), (.platform, .permission): "\(fault), says the front-end's IOMMU"
    default: "\(fault)"
    }
  }
}
