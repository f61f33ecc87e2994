internal import DMA
internal import Synchronization

/// What the chains of one queue name, in a space whose translations serve one chain only: they are given back before
/// the driver hears that the chain is used, and may give its addresses another meaning. Pages of rings stay.
///
/// For front-ends that translate and pass no unmaps on: QEMU's AMD-Vi.
final class ChainTranslations: ChainObserver {
  private let space: IOTLBSpace
  /// What the chain that is walked has named.
  private var walked: [ClosedRange<UInt64>] = []
  private var inFlight: [UInt32: [ClosedRange<UInt64>]] = [:]

  init(_ space: IOTLBSpace) { self.space = space }

  func named(_ address: DMAAddress, count: UInt64) {
    let last = address.rawValue.addingReportingOverflow(count - 1)
    walked.append(address.rawValue...(last.overflow ? .max : last.partialValue))
  }

  var namedPieces: Int { walked.count }

  // A chain of tens of thousands of pieces is not to cost room for as many from then on.
  func walkRepeats() { walked.removeAll(keepingCapacity: walked.count <= 256) }

  func taken(_ chain: UInt32) {
    inFlight[chain] = walked
    walkRepeats()
  }

  func ended(_ chain: UInt32) -> Int {
    guard let named = inFlight.removeValue(forKey: chain) else { return 0 }
    for range in named { space.forget(from: range.lowerBound, through: range.upperBound) }
    return named.count
  }
}

extension IOTLBSpace {
  /// Drops the translations of the bytes `first` through `last`. Called on queue threads.
  func forget(from first: UInt64, through last: UInt64) {
    // Nothing is waited for: chains that still use these pages were resolved before, and hold them by the front-end's
    // word.
    pages.remove(from: first, through: last)
    state.withLock { state in
      if !state.odd.isEmpty { state.odd.removeAll { $0.overlaps(from: first, through: last) } }
    }
  }
}
