/// What kind of device it is (§5).
public struct DeviceID: RawRepresentable, Hashable, Sendable {
  /// The number of §5.
  public var rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// virtio-net (§5.1).
  public static var network: Self { Self(rawValue: 1) }
  /// virtio-blk (§5.2).
  public static var block: Self { Self(rawValue: 2) }
  /// virtio-console (§5.3).
  public static var console: Self { Self(rawValue: 3) }
  /// virtio-rng (§5.4).
  public static var entropy: Self { Self(rawValue: 4) }
  /// virtio-balloon (§5.5).
  public static var balloon: Self { Self(rawValue: 5) }
  /// virtio-scsi (§5.6).
  public static var scsi: Self { Self(rawValue: 8) }
  /// virtio-vsock (§5.10).
  public static var socket: Self { Self(rawValue: 19) }
  /// virtio-iommu (§5.13).
  public static var iommu: Self { Self(rawValue: 23) }
  /// virtio-fs (§5.11).
  public static var fileSystem: Self { Self(rawValue: 26) }

  /// What is known of a kind by its number alone.
  private struct Kind {
    let id: DeviceID
    let name: String
    var transitional: UInt16?
  }

  private static let kinds = [
    Kind(id: .network, name: "net", transitional: 0x1000), Kind(id: .block, name: "blk", transitional: 0x1001),
    Kind(id: .console, name: "console", transitional: 0x1003), Kind(id: .entropy, name: "rng", transitional: 0x1005),
    Kind(id: .balloon, name: "balloon", transitional: 0x1002), Kind(id: .scsi, name: "scsi", transitional: 0x1004),
    Kind(id: DeviceID(rawValue: 9), name: "9p", transitional: 0x1009), Kind(id: .socket, name: "vsock"),
    Kind(id: .iommu, name: "iommu"), Kind(id: .fileSystem, name: "fs"),
  ]

  /// What comes after "virtio-" in the field's name for devices of this kind: `blk`; nil for a kind that is not known
  /// here.
  public var name: String? { Self.kinds.first { $0.id == self }?.name }

  /// The PCI device ID of a transitional function, for the kinds that have one (§4.1.2.1).
  var transitionalPCI: UInt16? { Self.kinds.first { $0.id == self }?.transitional }

  /// The kind whose transitional function has this PCI device ID.
  init?(transitionalPCI: UInt16) {
    guard let kind = Self.kinds.first(where: { $0.transitional == transitionalPCI }) else { return nil }
    self = kind.id
  }
}

/// The device status field (§2.1).
public struct DeviceStatus: OptionSet, Hashable, Sendable {
  /// The bits as the driver writes them.
  public var rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue }
  /// The driver has found the device.
  public static var acknowledge: Self { Self(rawValue: 1) }
  /// The driver knows how to drive it.
  public static var driver: Self { Self(rawValue: 2) }
  /// The driver is set up: the device is live.
  public static var driverOK: Self { Self(rawValue: 4) }
  /// The driver has accepted features, and negotiation is over.
  public static var featuresOK: Self { Self(rawValue: 8) }
  /// The driver wants the device to stand still, keeping its state.
  public static var suspend: Self { Self(rawValue: 16) }
  /// The device cannot go on (§2.1.2).
  public static var needsReset: Self { Self(rawValue: 64) }
  /// The driver has given up on the device.
  public static var failed: Self { Self(rawValue: 128) }
}
