public import PCI
public import Virtio
import VirtioServing

/// How a virtio device appears as a PCI function.
public struct VirtioPCIOptions: Sendable {
  /// How a driver's notifications are laid out (§4.1.4.4).
  public enum NotifyLayout: Hashable, Sendable {
    /// One address for all queues: the value written says which.
    case single
    /// A page for each queue, as one that is to be mapped into a guest by itself needs: the address says which.
    case pagePerQueue
    /// Four bytes for each queue, on pages of their own: memory will do in their place.
    case cellPerQueue
  }
  /// `iommu_platform`: whether VIRTIO_F_ACCESS_PLATFORM is offered. Off unless asked for, as in QEMU's patch of 2016
  /// that introduced the bit ("fixup! virtio: convert to use DMA api").
  public var iommuPlatform = OnOffAuto.off
  /// `disable-legacy`: whether the legacy interface is missing. `auto`: it is present where that is possible.
  public var disableLegacy = OnOffAuto.auto
  /// `disable-modern`: a legacy device, without the interface of virtio 1.
  public var disableModern = false
  /// Whether the device's back-end can work with addresses that an IOMMU translates.
  public var backendTranslates = true
  /// The guest's memory is protected from this process but for what it shares (a confidential guest): its drivers
  /// insist on the bit.
  public var isRestricted = false
  /// The function represents a physical one: its accesses take the path of all hardware behind an IOMMU, with any
  /// features negotiated.
  public var isHardware = false
  /// The IOMMU in front of the function is another process's, which may have none: what is said of the function claims
  /// neither.
  public var isIOMMUElsewhere = false
  /// A driver may leave VIRTIO_F_ACCESS_PLATFORM out although it is offered: for hardware, whose accesses take the same
  /// path in any case.
  public var isAccessPlatformOptional = false
  /// Features of the device that are not offered.
  public var withheld: Features = []
  public var notifyLayout = NotifyLayout.single
  /// MSI-X vectors, at most 2048; nil: one for each queue and one for the configuration; 0: interrupts by pin only.
  public var vectors: Int?
  /// The PCI Express capability that the function has, with function level reset and extended configuration space; nil:
  /// it is a conventional function.
  public var express: PCIExpressKind?
  /// Whether VIRTIO_F_SUSPEND is offered.
  public var offersSuspend = true
  /// Whether VIRTIO_F_NOTIF_CONFIG_DATA is offered.
  public var offersNotificationData = false
  /// Changes what the function is called. Nothing else follows from it (R012).
  public var rename: (@Sendable (inout PCIIdentity) -> Void)?

  /// The defaults.
  public init() {}
}

/// The choices that the options led to, and why: for reports on what a device does.
public struct VirtioPCIChoices: Hashable, Sendable {
  /// The interfaces a function has (§4.1).
  public enum Interface: String, Hashable, Sendable { case modern, transitional, legacy }
  /// Whether VIRTIO_F_ACCESS_PLATFORM is offered.
  public var offersAccessPlatform: Bool
  public var interface: Interface
  /// VIRTIO_F_ACCESS_PLATFORM is offered for the platform's sake, and not passed on to the back-end (R019).
  public var hidesAccessPlatform: Bool
  /// A sentence for each choice.
  public var reasons: [String]

  /// What a device of kind `id` is to be in a slot.
  ///
  /// - Parameter isBehindIOMMU: whether there is an IOMMU in front of the slot now.
  public init(_ options: VirtioPCIOptions, id: DeviceID, isBehindIOMMU: Bool) throws(ConfigurationError) {
    let canBeLegacy = PCITransport.transitionalDeviceID(id) != nil
    if options.disableModern, options.disableLegacy == .on {
      throw ConfigurationError(
        option: "disable-modern=on,disable-legacy=on", why: "no interface would be left", hint: "leave one of them out")
    }
    if options.disableLegacy == .off || options.disableModern, !canBeLegacy {
      throw ConfigurationError(
        option: options.disableModern ? "disable-modern=on" : "disable-legacy=off",
        why: "a device of type \(id.rawValue) has no legacy interface", hint: "leave it out")
    }
    var wish: AccessPlatformChoice.LegacyRequest?
    if options.disableModern {
      wish = AccessPlatformChoice.LegacyRequest(option: "disable-modern=on", hint: "leave disable-modern out")
    } else if options.disableLegacy == .off {
      wish = AccessPlatformChoice.LegacyRequest(option: "disable-legacy=off", hint: "use disable-legacy=on")
    }
    let bit = try AccessPlatformChoice(
      options.iommuPlatform, legacy: wish, isBehindIOMMU: isBehindIOMMU, isRestricted: options.isRestricted,
      backendTranslates: options.backendTranslates,
      need: options.isIOMMUElsewhere
        ? "every access goes through the client's IOMMU, if it has one" : AccessPlatformChoice.iommuInFront)
    offersAccessPlatform = bit.isOffered
    hidesAccessPlatform = bit.isHidden
    var reasons = bit.reasons
    if options.disableModern {
      interface = .legacy
      reasons.append("the device is a legacy one: disable-modern is on")
    } else if options.disableLegacy == .on {
      interface = .modern
      reasons.append("there is no legacy interface: disable-legacy is on")
    } else if options.disableLegacy == .off {
      interface = .transitional
      reasons.append("there is a legacy interface: disable-legacy is off")
    } else if offersAccessPlatform || options.isRestricted {
      interface = .modern
      reasons.append("there is no legacy interface: its drivers could not accept VIRTIO_F_ACCESS_PLATFORM")
    } else if !canBeLegacy {
      interface = .modern
      reasons.append("there is no legacy interface for a device of this type")
    } else {
      interface = .transitional
      reasons.append("there is a legacy interface: nothing speaks against it")
    }
    self.reasons = reasons
  }
}
