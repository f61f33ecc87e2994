internal import DMA

/// A range of addresses that a driver cannot map (§5.13.6.8.1).
public struct IOMMUReservedMemory: Hashable, Sendable {
  /// What the range is.
  @frozen public struct Subtype: RawRepresentable, Hashable, Sendable {
    public var rawValue: UInt8
    @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// Not to be used.
    @inlinable public static var reserved: Self { Self(rawValue: 0) }
    /// The doorbell of message signalled interrupts.
    @inlinable public static var msi: Self { Self(rawValue: 1) }
  }
  /// What it is.
  public var subtype: Subtype
  /// Its first and its last address.
  public var range: ClosedRange<UInt64>

  public init(_ range: ClosedRange<UInt64>, _ subtype: Subtype = .reserved) {
    self.range = range
    self.subtype = subtype
  }

  /// The properties of an endpoint, as a PROBE request returns them (§5.13.6.7): `count` bytes, zero after the last.
  /// nil when they do not fit.
  public static func properties(_ list: [IOMMUReservedMemory], count: Int) -> [UInt8]? {
    guard list.count <= count / IOMMULayout.reservedMemorySize else { return nil }
    var out = WireWriter(capacity: count)
    for memory in list {
      out.write(UInt16(1))
      out.write(IOMMULayout.reservedMemoryLength)
      out.write(memory.subtype.rawValue)
      out.zero(3)
      out.write(memory.range.lowerBound)
      out.write(memory.range.upperBound)
    }
    out.zero(count - out.bytes.count)
    return out.bytes
  }

  /// Reads properties up to the first empty one. What is not a RESV_MEM property is passed over, as is one whose
  /// reserved bits are set; a list that breaks off ends there (§5.13.6.7.1).
  public static func list(_ properties: Span<UInt8>) -> [IOMMUReservedMemory] {
    var found: [IOMMUReservedMemory] = []
    var reader = WireReader(properties)
    while reader.remaining >= 4 {
      let word: UInt16 = reader.read()
      let length = Int(reader.read(UInt16.self))
      if word & 0xfff == 0 { break }
      guard word == 1, length >= Int(IOMMULayout.reservedMemoryLength) else {
        reader.skip(length)
        if reader.isTruncated { break }
        continue
      }
      let subtype = Subtype(rawValue: reader.read())
      reader.skip(3)
      let (start, end): (UInt64, UInt64) = (reader.read(), reader.read())
      reader.skip(length - Int(IOMMULayout.reservedMemoryLength))
      if reader.isTruncated { break }
      if start <= end { found.append(IOMMUReservedMemory(start...end, subtype)) }
    }
    return found
  }
}

/// A report on the event queue (§5.13.6.9).
public struct IOMMUFault: Hashable, Sendable {
  /// Why it is reported.
  @frozen public struct Reason: RawRepresentable, Hashable, Sendable {
    public var rawValue: UInt8
    @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// None of the others.
    @inlinable public static var unknown: Self { Self(rawValue: 0) }
    /// The endpoint is attached to no domain.
    @inlinable public static var domain: Self { Self(rawValue: 1) }
    /// Its domain has no mapping there, or one that does not allow the access.
    @inlinable public static var mapping: Self { Self(rawValue: 2) }
  }
  /// What the endpoint tried.
  @frozen public struct Flags: OptionSet, Hashable, Sendable {
    public var rawValue: UInt32
    @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// It read.
    @inlinable public static var read: Self { Self(rawValue: 1) }
    /// It wrote.
    @inlinable public static var write: Self { Self(rawValue: 2) }
    /// ``IOMMUFault/address`` says where.
    @inlinable public static var address: Self { Self(rawValue: 1 << 8) }
  }
  public var reason: Reason
  public var flags: Flags
  /// The endpoint that tried.
  public var endpoint: UInt32
  /// Where, if ``Flags/address`` is set.
  public var address: UInt64

  public init(reason: Reason, flags: Flags, endpoint: UInt32, address: UInt64) {
    self.reason = reason
    self.flags = flags
    self.endpoint = endpoint
    self.address = address
  }

  /// Reads a report; bytes past its end are ignored. nil when there are too few, or the reserved field says to ignore
  /// it.
  public init?(_ bytes: Span<UInt8>) {
    var reader = WireReader(bytes)
    reason = Reason(rawValue: reader.read())
    let reserved = (reader.read(UInt8.self), reader.read(UInt16.self))
    flags = Flags(rawValue: reader.read())
    endpoint = reader.read()
    reader.skip(4)
    address = reader.read()
    if reader.isTruncated || reserved != (0, 0) { return nil }
  }

  /// The bytes a device writes.
  public var bytes: [UInt8] {
    var out = WireWriter(capacity: IOMMULayout.faultSize)
    out.write(reason.rawValue)
    out.zero(3)
    out.write(flags.rawValue)
    out.write(endpoint)
    out.zero(4)
    out.write(address)
    return out.bytes
  }
}
