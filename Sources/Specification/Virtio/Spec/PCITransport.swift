import DMA

/// Virtio over PCI (§4.1): what device and driver have to agree on.
public enum PCITransport {
  /// All virtio functions (§4.1.2).
  public static let vendorID: UInt16 = 0x1af4
  /// The device ID of a function that is not transitional (§4.1.2.1).
  public static func deviceID(_ id: DeviceID) -> UInt16 { UInt16(truncatingIfNeeded: 0x1040 &+ id.rawValue) }

  /// The transitional device ID, for the devices that have one (§4.1.2.1).
  public static func transitionalDeviceID(_ id: DeviceID) -> UInt16? { id.transitionalPCI }

  /// The device type behind a PCI device ID; nil: not a virtio function.
  public static func type(ofDeviceID pciDeviceID: UInt16) -> DeviceID? {
    if (0x1041...0x107f).contains(pciDeviceID) { return DeviceID(rawValue: UInt32(pciDeviceID) - 0x1040) }
    return DeviceID(transitionalPCI: pciDeviceID)
  }

  /// `cfg_type` of a virtio structure capability (§4.1.4).
  public enum Structure: UInt8, Hashable, Sendable {
    case common = 1, notify, isr, device, configurationAccess
    case sharedMemory = 8, vendor
  }

  /// Offsets in a virtio structure capability, from `cap_vndr` on (§4.1.4).
  public enum Capability {
    public static let type = 3
    public static let bar = 4
    public static let id = 5
    public static let offset = 8
    public static let length = 12
    /// Bytes without extra data.
    public static let byteCount = 16
    /// `notify_off_multiplier` (§4.1.4.4).
    public static let notifyMultiplier = 16
    /// `pci_cfg_data` (§4.1.4.9).
    public static let accessData = 16
  }

  /// Offsets in the common configuration structure (§4.1.4.3).
  public enum CommonRegister {
    public static let deviceFeatureSelect = 0
    public static let deviceFeature = 4
    public static let driverFeatureSelect = 8
    public static let driverFeature = 12
    public static let configurationVector = 16
    public static let queueCount = 18
    public static let deviceStatus = 20
    public static let configurationGeneration = 21
    public static let queueSelect = 22
    public static let queueSize = 24
    public static let queueVector = 26
    public static let queueEnable = 28
    public static let queueNotifyOffset = 30
    public static let queueDescriptor = 32
    public static let queueDriver = 40
    public static let queueDevice = 48
    /// Only with VIRTIO_F_NOTIF_CONFIG_DATA.
    public static let queueNotificationData = 56
    /// Only with VIRTIO_F_RING_RESET.
    public static let queueReset = 58
    /// Bytes up to here; what 1.4 adds for administration virtqueues is left out, with its feature.
    public static let byteCount = 60
  }

  /// Offsets in the legacy structure of BAR 0 (§4.1.4.10).
  public enum LegacyRegister {
    public static let deviceFeatures = 0
    public static let driverFeatures = 4
    public static let queueAddress = 8
    public static let queueSize = 12
    public static let queueSelect = 14
    public static let queueNotify = 16
    public static let deviceStatus = 18
    public static let isrStatus = 19
    /// Only while MSI-X is enabled, as the next.
    public static let configurationVector = 20
    public static let queueVector = 22
    /// Where the device's own configuration starts.
    public static func deviceConfiguration(isMSIXEnabled: Bool) -> Int { isMSIXEnabled ? 24 : 20 }
  }

  /// ISR status bits (§4.1.4.5).
  public enum ISR {
    public static let queue: UInt8 = 1
    public static let configuration: UInt8 = 2
  }

  /// An event that is mapped to no vector (§4.1.5.1.2).
  public static let noVector: UInt16 = 0xffff

  /// Bytes a legacy queue address counts (§4.1.5.1.3.1).
  public static let legacyPageSize: UInt64 = 4096
}

extension QueueLayout {
  /// Where the areas of a queue of the legacy interface are (§2.7.2): one after the other, the used ring on the next
  /// multiple of `alignment`.
  public init(legacyAt base: UInt64, size: UInt16, alignment: UInt64 = PCITransport.legacyPageSize) {
    let available = base &+ 16 &* UInt64(size)
    let used = (available &+ 6 &+ 2 &* UInt64(size) &+ (alignment &- 1)) & ~(alignment &- 1)
    self.init(
      size: size, descriptorArea: DMAAddress(base), driverArea: DMAAddress(available), deviceArea: DMAAddress(used))
  }
}
