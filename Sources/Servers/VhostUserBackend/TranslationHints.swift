internal import DMA
internal import Synchronization
internal import VhostUser
internal import VirtioServing

/// What a front-end's updates say about the IOMMU behind them, beyond their mappings.
struct TranslationHints: Sendable {
  /// Updates that lead from an address to the same guest-physical one: all of them do under pass-through.
  var identities: UInt64 = 0
  /// Updates for an address that had another translation until now, without an invalidation.
  var moved: UInt64 = 0
}

extension IOTLBSpace {
  /// Counts an update whose first byte leads into `run`, before it is carried out.
  func countUpdate(_ message: IOTLBMessage, leadingTo run: HostRun) {
    let isIdentity = memoryTable.guestAddress(of: FrontendAddress(message.frontendAddress))?.rawValue == message.address
    // With translations that serve one request only, none is in force for long, and nothing is missed.
    let before = servesOneChain ? nil : pages.run(at: DMAAddress(message.address))
    let hasMoved = before.map { !$0.leads(DMAAddress(message.address), whereItDoesIn: run) } ?? false
    counters.withLock {
      $0.updates += 1
      if isIdentity { $0.signs.identities += 1 }
      if hasMoved { $0.signs.moved += 1 }
    }
  }

  /// See `ServingReport/missesInvalidations`.
  var missesInvalidations: Bool {
    counters.withLock {
      ServingReport.missesInvalidations($0.invalidations, $0.updates, $0.signs.identities, $0.signs.moved)
    }
  }

}
