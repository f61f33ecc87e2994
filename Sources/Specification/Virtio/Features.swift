/// Feature bits, as offered, accepted or negotiated (§2.2). Virtio 1.4 numbers some past 63.
@frozen public struct Features: OptionSet, Hashable, Sendable {
  public var rawValue: UInt128
  @inlinable public init(rawValue: UInt128) { self.rawValue = rawValue }
  /// The feature with one bit number.
  @inlinable public init(bit: Int) { rawValue = 1 << UInt128(bit) }
  /// The first 64 bits, as transports with one 64-bit word carry them.
  @inlinable public init(word: UInt64) { rawValue = UInt128(word) }
  @inlinable public var word: UInt64 { UInt64(truncatingIfNeeded: rawValue) }

  /// The numbers of the bits that are set, ascending.
  public var bits: [Int] { (0..<128).filter { rawValue >> UInt128($0) & 1 == 1 } }

  // Reserved feature bits (§6).
  /// Legacy: the device notifies when the ring runs empty. Never offered here.
  @inlinable public static var notifyOnEmpty: Self { Self(bit: 24) }
  /// Legacy: a request's descriptors are cut anywhere (§6.3), as every device of virtio 1 takes them. Offered through
  /// the legacy interface only.
  @inlinable public static var anyLayout: Self { Self(bit: 27) }
  @inlinable public static var indirectDescriptors: Self { Self(bit: 28) }
  @inlinable public static var eventIndex: Self { Self(bit: 29) }
  @inlinable public static var version1: Self { Self(bit: 32) }
  /// The device's accesses go through the platform: an IOMMU, a bounce pool, grants (§6). ``AddressPath`` alone tests
  /// it.
  @inlinable public static var accessPlatform: Self { Self(bit: 33) }
  @inlinable public static var ringPacked: Self { Self(bit: 34) }
  @inlinable public static var inOrder: Self { Self(bit: 35) }
  @inlinable public static var orderPlatform: Self { Self(bit: 36) }
  @inlinable public static var singleRootIOV: Self { Self(bit: 37) }
  @inlinable public static var notificationData: Self { Self(bit: 38) }
  @inlinable public static var notificationConfigurationData: Self { Self(bit: 39) }
  @inlinable public static var ringReset: Self { Self(bit: 40) }
  @inlinable public static var administrationQueue: Self { Self(bit: 41) }
  @inlinable public static var suspend: Self { Self(bit: 43) }

  /// What every device here offers about its rings.
  public static var ring: Self {
    [
      .version1, .indirectDescriptors, .eventIndex, .ringPacked, .inOrder, .orderPlatform, .notificationData,
      .ringReset,
    ]
  }
}
