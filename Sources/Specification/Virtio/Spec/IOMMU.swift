/// Feature bits of an IOMMU device (§5.13.3).
extension Features {
  /// `input_range`: which virtual addresses can be mapped.
  public static var iommuInputRange: Self { Self(bit: 0) }
  /// `domain_range`: which numbers domains can have.
  public static var iommuDomainRange: Self { Self(bit: 1) }
  /// MAP and UNMAP requests are served.
  public static var iommuMapUnmap: Self { Self(bit: 2) }
  /// Endpoints without a domain are in bypass mode. Superseded by ``iommuBypassConfig``.
  public static var iommuBypass: Self { Self(bit: 3) }
  /// PROBE requests are served.
  public static var iommuProbe: Self { Self(bit: 4) }
  /// ``IOMMUMapFlags/mmio`` is known.
  public static var iommuMMIO: Self { Self(bit: 5) }
  /// The field `bypass` says whether endpoints without a domain are in bypass mode, and domains can be bypass domains.
  public static var iommuBypassConfig: Self { Self(bit: 6) }
}

/// What a request asks for (§5.13.6).
@frozen public struct IOMMURequestType: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt8
  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }
  /// Attach an endpoint to a domain, which is created if it does not exist.
  @inlinable public static var attach: Self { Self(rawValue: 1) }
  /// Detach an endpoint from its domain, which ends when it was the last.
  @inlinable public static var detach: Self { Self(rawValue: 2) }
  /// Map a range of virtual addresses.
  @inlinable public static var map: Self { Self(rawValue: 3) }
  /// Remove mappings.
  @inlinable public static var unmap: Self { Self(rawValue: 4) }
  /// Ask for an endpoint's properties.
  @inlinable public static var probe: Self { Self(rawValue: 5) }
}

/// How a request ended (§5.13.6).
@frozen public struct IOMMUStatus: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
  public var rawValue: UInt8
  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }
  /// Done.
  @inlinable public static var ok: Self { Self(rawValue: 0) }
  /// Virtio communication error.
  @inlinable public static var ioError: Self { Self(rawValue: 1) }
  /// Not supported.
  @inlinable public static var unsupported: Self { Self(rawValue: 2) }
  /// The device's own error.
  @inlinable public static var deviceError: Self { Self(rawValue: 3) }
  /// Invalid parameters.
  @inlinable public static var invalid: Self { Self(rawValue: 4) }
  /// Parameters out of range.
  @inlinable public static var range: Self { Self(rawValue: 5) }
  /// No such domain or endpoint.
  @inlinable public static var noEntry: Self { Self(rawValue: 6) }
  /// Bad address.
  @inlinable public static var fault: Self { Self(rawValue: 7) }
  /// Too little of something.
  @inlinable public static var noMemory: Self { Self(rawValue: 8) }
  /// The specification's word for it.
  public var description: String {
    let names = ["OK", "IOERR", "UNSUPP", "DEVERR", "INVAL", "RANGE", "NOENT", "FAULT", "NOMEM"]
    return Int(rawValue) < names.count ? names[Int(rawValue)] : "status \(rawValue)"
  }
}

/// The flags of an ATTACH request (§5.13.6.3).
@frozen public struct IOMMUAttachFlags: OptionSet, Hashable, Sendable {
  public var rawValue: UInt32
  @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// The domain is a bypass domain.
  @inlinable public static var bypass: Self { Self(rawValue: 1) }
}

/// The flags of a MAP request (§5.13.6.5).
@frozen public struct IOMMUMapFlags: OptionSet, Hashable, Sendable {
  public var rawValue: UInt32
  @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// Endpoints may read there.
  @inlinable public static var read: Self { Self(rawValue: 1) }
  /// Endpoints may write there.
  @inlinable public static var write: Self { Self(rawValue: 2) }
  /// Registers of a device are there, not memory.
  @inlinable public static var mmio: Self { Self(rawValue: 4) }
}

/// Sizes and places in what requests and reports consist of, bytes (§5.13.6).
public enum IOMMULayout {
  /// `type` and three reserved bytes, at the start of every request.
  @inlinable public static var headSize: Int { 4 }
  /// `status` and three reserved bytes, at its end.
  @inlinable public static var tailSize: Int { 4 }
  /// The device-readable part of a PROBE request, head included.
  @inlinable public static var probeSize: Int { 72 }
  /// A fault report (§5.13.6.9).
  @inlinable public static var faultSize: Int { 24 }
  /// A RESV_MEM property with its header (§5.13.6.8.1), and how long it says it is.
  @inlinable public static var reservedMemorySize: Int { 24 }
  @inlinable public static var reservedMemoryLength: UInt16 { 20 }
  /// The configuration space (§5.13.4), and where its one writable field, `bypass`, is.
  @inlinable public static var configurationSize: Int { 40 }
  @inlinable public static var bypassOffset: Int { 36 }
  /// The queues (§5.13.2).
  @inlinable public static var requestQueue: Int { 0 }
  @inlinable public static var eventQueue: Int { 1 }
}
