public import Virtio

/// Whether a device offers VIRTIO_F_ACCESS_PLATFORM, why, and whether its back-end gets it: one rule for every bus
/// (R018–R024).
public struct AccessPlatformChoice: Hashable, Sendable {
  /// An option that asks for the legacy interface, whose drivers cannot see bit 33, and what to type instead.
  public struct LegacyRequest: Hashable, Sendable {
    /// The option as it is written, with its value.
    public var option: String
    /// What to do: an instruction.
    public var hint: String
    /// The two, without full stops.
    public init(option: String, hint: String) {
      self.option = option
      self.hint = hint
    }
  }
  /// Whether the bit is offered.
  public var isOffered: Bool
  /// It is offered for the platform's sake, and not passed on to the back-end (R019).
  public var isHidden: Bool
  /// A sentence for each choice.
  public var reasons: [String]

  /// The usual reason to offer the bit, as a clause.
  public static let iommuInFront = "an IOMMU is in front of the device"

  /// The choice for a device.
  ///
  /// - Parameters:
  ///   - wish: the option `iommu_platform`.
  ///   - legacy: what asks for the legacy interface, or nil.
  ///   - isBehindIOMMU: whether there is an IOMMU in front of the device now.
  ///   - isRestricted: whether the guest's memory is protected from devices but for what it shares.
  ///   - backendTranslates: whether the back-end can work with addresses that an IOMMU translates.
  ///   - need: the reason where `isBehindIOMMU` is one, as a clause.
  public init(
    _ wish: OnOffAuto, legacy: LegacyRequest?, isBehindIOMMU: Bool, isRestricted: Bool, backendTranslates: Bool,
    need: String = iommuInFront
  ) throws(ConfigurationError) {
    switch wish {
    case .off:
      isOffered = false
      reasons = ["VIRTIO_F_ACCESS_PLATFORM is not offered: iommu_platform is off"]
    case .on:
      if let legacy {
        throw ConfigurationError(
          option: "iommu_platform=on,\(legacy.option)", why: "a legacy driver cannot see feature bit 33",
          hint: legacy.hint)
      }
      if isBehindIOMMU, !backendTranslates {
        throw ConfigurationError(
          option: "iommu_platform=on",
          why: "the device's back-end cannot translate addresses, and an IOMMU is in front of it",
          hint: "use a back-end that can, or put the device where it bypasses the IOMMU")
      }
      isOffered = true
      reasons = ["VIRTIO_F_ACCESS_PLATFORM is offered: iommu_platform is on"]
    case .auto:
      let isNeeded = isBehindIOMMU || isRestricted
      let obstacle =
        legacy != nil
        ? "the legacy interface is asked for"
        : isBehindIOMMU && !backendTranslates ? "the back-end cannot translate" : nil
      isOffered = isNeeded && obstacle == nil
      if !isNeeded {
        reasons = [
          "VIRTIO_F_ACCESS_PLATFORM is not offered: there is no IOMMU in front of the device, and memory is not "
            + "restricted"
        ]
      } else if let obstacle {
        reasons = ["VIRTIO_F_ACCESS_PLATFORM is not offered: \(obstacle)"]
      } else {
        let need = isBehindIOMMU ? need : "memory is restricted"
        reasons = ["VIRTIO_F_ACCESS_PLATFORM is offered: \(need)"]
      }
    }
    isHidden = isOffered && !backendTranslates
    if isHidden { reasons.append("the back-end is not told of it: nothing translates") }
  }
}
