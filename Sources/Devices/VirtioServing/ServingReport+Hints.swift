internal import Virtio

// What the figures of a report say about the IOMMU behind them.
extension ServingReport {
  /// Refused accesses, on both paths.
  public var faults: UInt64 { client?.refusals ?? queues.reduce(0) { $0 + $1.counts.faults } }

  /// Whether every mapping so far leads from an address to itself: then an IOMMU in pass-through mode is the likeliest
  /// reason, and every page that the device asks for would be granted. Over vfio-user: whether all of memory is mapped.
  public var looksLikePassThrough: Bool {
    if let client { return client.mapsEverything }
    return addressPath == .platform && iotlb.updates > 0 && iotlb.identities == iotlb.updates
  }

  /// Whether mappings come, and none is ever taken back although some must have been: unmaps do not get here.
  public var missesInvalidations: Bool {
    addressPath == .platform && translations == .keep
      && Self.missesInvalidations(iotlb.invalidations, iotlb.updates, iotlb.identities, iotlb.moved)
  }

  /// A driver that unmaps anything has unmapped something after so many mappings, and an IOMMU in lazy mode has
  /// flushed.
  static let manyUpdates: UInt64 = 4096

  /// What to do where ``missesInvalidations``.
  package static let invalidationHint =
    "the front-end passes mappings on and has taken none back; unless the guest's driver keeps all it maps, put the "
    + "device behind a root port with ats=on, or serve it with --translations once"

  /// Bytes of guest memory that the device can come to reach without the guest doing anything: what it has, or all.
  public var grantableBytes: UInt64 { looksLikePassThrough ? max(memoryBytes, reachableBytes) : reachableBytes }

  /// Whether so many messages say that unmaps are not passed on.
  package static func missesInvalidations(
    _ invalidations: UInt64, _ updates: UInt64, _ identities: UInt64, _ moved: UInt64
  ) -> Bool {
    invalidations == 0 && identities < updates && (moved > 0 || updates >= ServingReport.manyUpdates)
  }
}
