internal import DMA

/// The configuration space of an IOMMU device (§5.13.4). Every field holds a value whether its feature is offered or
/// not.
public struct IOMMUConfiguration: Hashable, Sendable {
  /// Page sizes that can be mapped; the lowest bit is the granularity, the others are hints.
  public var pageSizeMask: UInt64 = 0xffff_ffff_ffff_f000
  /// Virtual addresses that can be mapped.
  public var inputRange: ClosedRange<UInt64> = 0 ... .max
  /// Numbers that domains can have.
  public var domainRange: ClosedRange<UInt32> = 0 ... .max
  /// Bytes of `properties` in a PROBE request.
  public var probeSize: UInt32 = 512
  /// Whether endpoints without a domain are in bypass mode.
  public var bypass = false

  public init() {}

  /// Reads what a device shows. nil when a range ends before it starts, or no page size is named.
  public init?(_ bytes: Span<UInt8>) {
    var reader = WireReader(bytes)
    pageSizeMask = reader.read()
    let (start, end): (UInt64, UInt64) = (reader.read(), reader.read())
    let (first, last): (UInt32, UInt32) = (reader.read(), reader.read())
    probeSize = reader.read()
    // Bits 1 to 7 are to be ignored (§5.13.4.1).
    bypass = reader.read(UInt8.self) & 1 == 1
    guard !reader.isTruncated, start <= end, first <= last, pageSizeMask != 0 else { return nil }
    inputRange = start...end
    domainRange = first...last
  }

  /// The bytes a driver sees; ``IOMMULayout/configurationSize`` of them.
  public var bytes: [UInt8] {
    var out = WireWriter(capacity: IOMMULayout.configurationSize)
    out.write(pageSizeMask)
    out.write(inputRange.lowerBound)
    out.write(inputRange.upperBound)
    out.write(domainRange.lowerBound)
    out.write(domainRange.upperBound)
    out.write(probeSize)
    out.write(UInt8(bypass ? 1 : 0))
    out.zero(3)
    return out.bytes
  }

  /// The smallest page, bytes.
  public var granule: UInt64 { pageSizeMask & (~pageSizeMask &+ 1) }
}
