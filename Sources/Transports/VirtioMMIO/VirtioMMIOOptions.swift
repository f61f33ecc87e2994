public import Virtio
import VirtioServing

/// How a virtio device appears behind memory-mapped registers.
public struct VirtioMMIOOptions: Sendable {
  /// `iommu_platform`: whether VIRTIO_F_ACCESS_PLATFORM is offered. Off unless asked for, as in QEMU's patch of 2016
  /// that introduced the bit ("fixup! virtio: convert to use DMA api").
  public var iommuPlatform = OnOffAuto.off
  /// `legacy`: the registers of §4.2.4 instead of those of virtio 1. There is no device with both.
  public var legacy = false
  /// Whether the device's back-end can work with addresses that an IOMMU translates.
  public var backendTranslates = true
  /// The guest's memory is protected from this process but for what it shares (a confidential guest): its drivers
  /// insist on the bit.
  public var isRestricted = false
  /// Whether VIRTIO_F_SUSPEND is offered.
  public var offersSuspend = true
  /// What VendorID reads as. Nothing else follows from it (R012).
  public var vendorID = UInt32(PCITransport.vendorID)

  /// The defaults.
  public init() {}
}

/// The choices that the options led to, and why: for reports on what a device does.
public struct VirtioMMIOChoices: Hashable, Sendable {
  /// Whether VIRTIO_F_ACCESS_PLATFORM is offered.
  public var offersAccessPlatform: Bool
  /// Whether the registers are those of a legacy device.
  public var isLegacy: Bool
  /// VIRTIO_F_ACCESS_PLATFORM is offered for the platform's sake, and not passed on to the back-end (R019).
  public var hidesAccessPlatform: Bool
  /// A sentence for each choice.
  public var reasons: [String]

  /// What a device of kind `id` is to be.
  ///
  /// - Parameter isBehindIOMMU: whether there is an IOMMU in front of the device now.
  public init(_ options: VirtioMMIOOptions, id: DeviceID, isBehindIOMMU: Bool) throws(ConfigurationError) {
    if options.legacy, PCITransport.transitionalDeviceID(id) == nil {
      throw ConfigurationError(
        option: "legacy=on", why: "a device of type \(id.rawValue) has no legacy interface", hint: "use legacy=off")
    }
    let bit = try AccessPlatformChoice(
      options.iommuPlatform,
      legacy: options.legacy ? AccessPlatformChoice.LegacyRequest(option: "legacy=on", hint: "use legacy=off") : nil,
      isBehindIOMMU: isBehindIOMMU, isRestricted: options.isRestricted, backendTranslates: options.backendTranslates)
    offersAccessPlatform = bit.isOffered
    hidesAccessPlatform = bit.isHidden
    isLegacy = options.legacy
    reasons =
      bit.reasons + [
        options.legacy ? "the device is a legacy one: legacy is on" : "there is no legacy interface: legacy is off"
      ]
  }
}
