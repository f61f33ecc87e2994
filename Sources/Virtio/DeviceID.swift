/// What kind of device it is (§5).
public struct DeviceID: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  public static var network: Self { Self(rawValue: 1) }
  public static var block: Self { Self(rawValue: 2) }
  public static var console: Self { Self(rawValue: 3) }
  public static var entropy: Self { Self(rawValue: 4) }
  public static var balloon: Self { Self(rawValue: 5) }
  public static var scsi: Self { Self(rawValue: 8) }
  public static var socket: Self { Self(rawValue: 19) }
  public static var iommu: Self { Self(rawValue: 23) }
  public static var fileSystem: Self { Self(rawValue: 26) }
}

/// The device status field (§2.1).
public struct DeviceStatus: OptionSet, Hashable, Sendable {
  public var rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue }
  public static var acknowledge: Self { Self(rawValue: 1) }
  public static var driver: Self { Self(rawValue: 2) }
  public static var driverOK: Self { Self(rawValue: 4) }
  public static var featuresOK: Self { Self(rawValue: 8) }
  public static var suspend: Self { Self(rawValue: 16) }
  public static var needsReset: Self { Self(rawValue: 64) }
  public static var failed: Self { Self(rawValue: 128) }
}
