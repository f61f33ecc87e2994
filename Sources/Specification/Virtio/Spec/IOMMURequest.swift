internal import DMA

/// The device-readable part of a request to an IOMMU device (§5.13.6).
public enum IOMMURequest: Hashable, Sendable {
  /// `reserved` is what the driver wrote there; a device refuses what is not 0.
  case attach(domain: UInt32, endpoint: UInt32, flags: IOMMUAttachFlags, reserved: UInt32 = 0)
  case detach(domain: UInt32, endpoint: UInt32)
  /// Both ends are part of the range.
  case map(domain: UInt32, first: UInt64, last: UInt64, physical: UInt64, flags: IOMMUMapFlags)
  case unmap(domain: UInt32, first: UInt64, last: UInt64, reserved: UInt32 = 0)
  case probe(endpoint: UInt32)

  /// Bytes of the longest.
  public static var maxSize: Int { IOMMULayout.probeSize }

  /// Reads a request; bytes past its end are ignored. nil when the type is not known, or there are fewer bytes than it
  /// has.
  public init?(_ bytes: Span<UInt8>) {
    var reader = WireReader(bytes)
    let type = IOMMURequestType(rawValue: reader.read())
    reader.skip(3)
    switch type {
    case .attach:
      self = .attach(
        domain: reader.read(), endpoint: reader.read(), flags: IOMMUAttachFlags(rawValue: reader.read()),
        reserved: reader.read())
    case .detach:
      self = .detach(domain: reader.read(), endpoint: reader.read())
      reader.skip(8)
    case .map:
      self = .map(
        domain: reader.read(), first: reader.read(), last: reader.read(), physical: reader.read(),
        flags: IOMMUMapFlags(rawValue: reader.read()))
    case .unmap:
      self = .unmap(domain: reader.read(), first: reader.read(), last: reader.read(), reserved: reader.read())
    case .probe:
      self = .probe(endpoint: reader.read())
      reader.skip(64)
    default: return nil
    }
    if reader.isTruncated { return nil }
  }

  /// What it asks for.
  public var type: IOMMURequestType {
    switch self {
    case .attach: .attach
    case .detach: .detach
    case .map: .map
    case .unmap: .unmap
    case .probe: .probe
    }
  }

  /// The bytes a driver writes.
  public var bytes: [UInt8] {
    var out = WireWriter(capacity: Self.maxSize)
    out.write(type.rawValue)
    out.zero(3)
    switch self {
    case .attach(let domain, let endpoint, let flags, let reserved):
      out.write(domain)
      out.write(endpoint)
      out.write(flags.rawValue)
      out.write(reserved)
    case .detach(let domain, let endpoint):
      out.write(domain)
      out.write(endpoint)
      out.zero(8)
    case .map(let domain, let first, let last, let physical, let flags):
      out.write(domain)
      out.write(first)
      out.write(last)
      out.write(physical)
      out.write(flags.rawValue)
    case .unmap(let domain, let first, let last, let reserved):
      out.write(domain)
      out.write(first)
      out.write(last)
      out.write(reserved)
    case .probe(let endpoint):
      out.write(endpoint)
      out.zero(64)
    }
    return out.bytes
  }
}
