public import IOMMUInterface
public import Virtio

/// What an IOMMU device is like.
public struct IOMMUOptions: Sendable {
  /// How endpoints without a domain get into bypass mode.
  public enum Bypass: Hashable, Sendable {
    /// They never do: neither feature is offered.
    case never
    /// VIRTIO_IOMMU_F_BYPASS_CONFIG is offered; the field `bypass` starts as this.
    case configured(Bool)
    /// VIRTIO_IOMMU_F_BYPASS is offered, as devices did before: in bypass mode if the driver accepts it.
    case accepted
  }
  /// How endpoints without a domain get into bypass mode. A field that starts as 1 lets firmware work that knows no
  /// IOMMU.
  public var bypass = Bypass.configured(true)
  /// Page sizes; the lowest bit, 4096 at least, is the granularity.
  public var pageSizeMask: UInt64 = 0xffff_ffff_ffff_f000
  /// Addresses that can be mapped.
  public var inputRange: ClosedRange<UInt64> = 0 ... .max
  /// Numbers of domains.
  public var domainRange: ClosedRange<UInt32> = 0 ... .max
  /// Bytes of properties: 24 for each reserved range of an endpoint at least.
  public var probeSize: UInt32 = 512
  /// Ranges that no endpoint can map, but those of ``reservedMemoryOf``.
  public var reservedMemory: [IOMMUReservedMemory] = []
  /// Ranges that one endpoint cannot map, instead of ``reservedMemory``.
  public var reservedMemoryOf: [RequesterID: [IOMMUReservedMemory]] = [:]
  /// Domains at most; more end in NOMEM, as do more mappings (R167).
  public var maxDomains = 1 << 16
  /// Mappings of one domain, and of all together.
  public var maxMappingsPerDomain = 1 << 20
  public var maxMappings = 1 << 22
  /// Reports of faults a second; what is more is counted and dropped (R093).
  public var maxFaultsPerSecond = 1000
  /// The device's own number on its bus: an endpoint of that number is none of its own, because it never translates its
  /// own queues (R036).
  public var ownRequester: RequesterID?

  public init() {}

  /// What is wrong with them.
  var fault: String? {
    let granule = pageSizeMask & (~pageSizeMask &+ 1)
    guard granule >= 4096 else { return "the page size mask names no page size of 4096 bytes or more as its smallest" }
    guard inputRange.lowerBound & (granule - 1) == 0, (inputRange.upperBound &+ 1) & (granule - 1) == 0 else {
      return "the input range is not made of whole pages"
    }
    guard maxDomains > 0, maxMappingsPerDomain > 0, maxMappings > 0, maxFaultsPerSecond > 0 else {
      return "a limit is below 1"
    }
    for list in [reservedMemory] + reservedMemoryOf.values {
      guard list.count <= Int(probeSize) / IOMMULayout.reservedMemorySize else {
        return "\(list.count) reserved ranges do not fit into \(probeSize) bytes of properties"
      }
      guard list.count(where: { $0.subtype == .msi }) <= 1 else {
        return "an endpoint has two reserved ranges for interrupts"
      }
      for (i, one) in list.enumerated() where list[..<i].contains(where: { $0.range.overlaps(one.range) }) {
        return "an endpoint's reserved ranges overlap"
      }
    }
    return nil
  }
}
