internal import DMA
internal import Synchronization
internal import VhostUser
internal import Virtio

/// What a front-end's updates say about the IOMMU behind them, beyond their mappings.
struct TranslationSigns: Sendable {
  /// Updates that lead from an address to the same guest-physical one: all of them do under pass-through.
  var identities: UInt64 = 0
  /// Updates for an address that had another translation until now, without an invalidation.
  var moved: UInt64 = 0
}

extension IOTLBSpace {
  /// Counts an update whose first byte leads into `run`, before it is carried out.
  func countUpdate(_ message: IOTLBMessage, leadingTo run: HostRun) {
    let isIdentity = memory.guestAddress(of: FrontendAddress(message.frontendAddress))?.rawValue == message.address
    // With translations that serve one request only, none is in force for long, and nothing is missed.
    let before = servesOneChain ? nil : pages.run(at: DMAAddress(message.address))
    let hasMoved = before.map { !$0.leads(DMAAddress(message.address), whereItDoesIn: run) } ?? false
    counters.withLock {
      $0.updates += 1
      if isIdentity { $0.signs.identities += 1 }
      if hasMoved { $0.signs.moved += 1 }
    }
  }

  /// See ``BackendStatistics/missesInvalidations``.
  var missesInvalidations: Bool {
    counters.withLock { Self.missesInvalidations($0.invalidations, $0.updates, $0.signs.identities, $0.signs.moved) }
  }

  static func missesInvalidations(
    _ invalidations: UInt64, _ updates: UInt64, _ identities: UInt64, _ moved: UInt64
  ) -> Bool {
    invalidations == 0 && identities < updates && (moved > 0 || updates >= BackendStatistics.manyUpdates)
  }
}

extension BackendStatistics {
  /// Whether every mapping so far leads from an address to itself: then an IOMMU in pass-through mode is the likeliest
  /// reason, and every page that the device asks for would be granted.
  public var looksLikePassThrough: Bool {
    addressPath == .platform && iotlb.updates > 0 && iotlb.identities == iotlb.updates
  }

  /// Whether mappings come, and none is ever taken back although some must have been: unmaps do not get here.
  public var missesInvalidations: Bool {
    addressPath == .platform && translations == .keep
      && IOTLBSpace.missesInvalidations(iotlb.invalidations, iotlb.updates, iotlb.identities, iotlb.moved)
  }

  /// A driver that unmaps anything has unmapped something after so many mappings, and an IOMMU in lazy mode has
  /// flushed.
  static let manyUpdates: UInt64 = 4096

  /// What to do where ``missesInvalidations``.
  static let invalidationHint =
    "the front-end passes mappings on and has taken none back; unless the guest's driver keeps all it maps, put the device behind a root port "
    + "with ats=on, or serve it with --translations once"

  /// Bytes of guest memory that the device can come to reach without the guest doing anything: what it has, or all.
  public var grantableBytes: UInt64 { looksLikePassThrough ? memoryBytes : reachableBytes }
}
