internal import DeviceCatalog
internal import Virtio

extension Cell {
  /// Why the outcome is expected, a sentence each: the rules in the order in which they decide.
  public var reasons: [String] {
    let decision = decision
    if case .impossible(let why) = expected { return [why] }
    if !decision.device.isVirtio {
      return ["a device that is not virtio has no feature bit: the platform alone decides (R080)"] + reachReasons
    }
    var reasons: [String] = []
    if decision.host == .old {
      reasons.append("a host older than the bit cannot offer it")
    } else {
      reasons.append(
        decision.offersPlatform
          ? "iommu_platform is \(decision.property.rawValue), so VIRTIO_F_ACCESS_PLATFORM is offered"
          : "iommu_platform is \(decision.property.rawValue)\(decision.property == .auto ? ", and nothing needs the bit or the interface cannot have it" : ""): VIRTIO_F_ACCESS_PLATFORM is not offered"
      )
    }
    switch expected {
    case .refusedAtCreation: return ["iommu_platform is on, and a legacy driver could not see bit 33 (R023)"]
    case .refusedByDriver:
      return reasons + ["this guest refuses devices that can reach memory that was not given to them (R174)"]
    case .refusedByDevice:
      let missing = decision.acknowledgement == .neither ? "VERSION_1" : "VIRTIO_F_ACCESS_PLATFORM"
      return reasons + [
        "the driver does not accept \(missing), which was offered, so FEATURES_OK does not stay set (R008, R009)"
      ]
    default: break
    }
    reasons.append(
      decision.offersPlatform
        ? "the driver accepts it, so device and driver both use the platform's addresses"
        : decision.platform.devicesAreHardware
          ? "the driver uses physical addresses; hardware is behind its IOMMU all the same"
          : decision.platform.isXen
            ? "in a Xen guest the driver uses the platform's mapper all the same, because its physical addresses mean nothing outside (R173)"
            : "without it device and driver both use physical addresses, even if the tables list an IOMMU (R006, R172)"
    )
    return reasons + reachReasons
  }

  private var reachReasons: [String] {
    var reasons: [String] = []
    if decision.path == .platform {
      switch decision.state {
      case .none: reasons.append("there is no IOMMU: addresses are physical")
      case .bypass: reasons.append("the IOMMU passes the device's addresses unchanged")
      case .attached: reasons.append("the IOMMU decides for each page")
      case .unattached: reasons.append("the device is not attached to an IOMMU domain, so it reaches nothing")
      }
      if decision.state == .attached, !decision.usesPlatformMapper {
        reasons.append("nothing is mapped under a physical address")
      }
    }
    guard decision.reachesMemory, let shape = data?.shape else { return reasons }
    switch shape {
    case .contiguous: reasons.append("the buffer is one piece, and reachable")
    case .scattered:
      reasons.append(
        "its pages are not adjacent in memory, and are accessed in the order of the device's addresses (R046)"
      )
    case .hole: reasons.append("a page of the buffer is not reachable, so no byte of it moves (R087)")
    case .readOnly: reasons.append("the device may only read the buffer: a request that writes it is refused (R084)")
    case .writeOnly: reasons.append("the device may only write the buffer: a request that reads it is refused (R083)")
    case .top: reasons.append("the buffer ends with the last address, and nothing wraps (R059)")
    }
    return reasons
  }
}
