internal import DeviceCatalog
internal import Virtio

/// The truth table: the expected outcome of each decision, written from the rules and not from the implementation.
///
///     offered  accepted  through             the device uses           the driver uses
///     no       -         any interface       physical addresses        physical ones; the platform's in a Xen guest
///     yes      yes       virtio 1            the platform's            the platform's
///     yes      no        virtio 1            nothing: FEATURES_OK is refused
///     yes      -         a legacy interface  nothing: there is no such device
///
/// Hardware uses the platform's addresses in every row, and so does what is not virtio.
extension Decision {
  /// Why there is no such case, or nil.
  public var impossibility: String? {
    if !device.isVirtio {
      guard platform.hasNVMe else { return "no such controller can be plugged in there" }
      guard interface == .nvme else { return "a device that is not virtio has no virtio interface" }
      guard property == .off, acknowledgement == .all else {
        return "a device that is not virtio has no property iommu_platform and negotiates nothing (R080)"
      }
    } else {
      guard interface != .nvme else { return "a virtio device is not an NVMe controller" }
      guard platform.buses.contains(interface.bus) else {
        return "virtio devices of this platform are not on \(interface.bus.rawValue)"
      }
      if host == .old {
        guard property == .off else { return "a host older than the bit has no property iommu_platform" }
      }
      guard device.hasLegacyInterface || interface == .modern || interface == .mmio else {
        return "devices of this kind are younger than virtio 1: they have no legacy interface"
      }
      if interface.isLegacy, platform.isBigEndian {
        return "legacy rings are big-endian there, and the legacy interface here is little-endian"
      }
      guard interface.isLegacy == (acknowledgement == .legacy) else {
        return interface.isLegacy
          ? "a legacy driver sees 32 bits, and accepts no others" : "this interface has all the bits"
      }
    }
    return impossibleState
  }

  private var impossibleState: String? {
    switch (platform.unit, state) {
    case (.none, .none): nil
    case (.none, _): "there is no IOMMU to be in that state"
    case (_, .none): "the platform's IOMMU cannot be removed; pass-through is another case"
    case (.tce, .bypass): "the bridge translates every address"
    case (.grants, .unattached): "grants need no attachment"
    case (.grants, .bypass): "an address that is not a grant is refused"
    default: nil
    }
  }

  /// Whether bit 33 is offered.
  public var offersPlatform: Bool {
    guard device.isVirtio, host == .new else { return false }
    switch property {
    case .off: return false
    case .on: return true
    // Where it is needed, and can be accepted.
    case .auto: return (platform.unit != .none || platform.isRestricted) && (interface == .modern || interface == .mmio)
    }
  }

  /// The expected outcome before data; nil where data moves.
  public var refusal: CellOutcome? {
    if let impossibility { return .impossible(impossibility) }
    if !device.isVirtio { return nil }
    if property == .on, interface != .modern, interface != .mmio { return .refusedAtCreation }
    if platform.isRestricted, !offersPlatform { return .refusedByDriver }
    if acknowledgement == .neither || acknowledgement == .notPlatform && offersPlatform { return .refusedByDevice }
    return nil
  }

  /// Whose addresses the device uses.
  public var path: PathTaken {
    !device.isVirtio || platform.devicesAreHardware || offersPlatform ? .platform : .physical
  }

  /// Whether the driver asks the platform for addresses.
  public var usesPlatformMapper: Bool { !device.isVirtio || offersPlatform || platform.isXen }

  /// Whether the addresses that the driver gives the device lead to memory at all.
  public var reachesMemory: Bool {
    guard path == .platform else { return true }
    switch state {
    case .none, .bypass: return true
    case .unattached: return false
    // Hardware without the bit: physical addresses, where nothing is mapped under them.
    case .attached: return usesPlatformMapper
    }
  }

  /// Whether an IOMMU's tables decide about each page.
  public var isTranslated: Bool { path == .platform && state == .attached }
}

extension Cell {
  /// The expected outcome.
  public var expected: CellOutcome {
    if let refusal = decision.refusal { return refusal }
    guard let data else { return .impossible("it is not refused, so data moves") }
    if let why = impossibility(data) { return .impossible(why) }
    let path = decision.path
    guard decision.reachesMemory else { return .fault(path) }
    switch data.shape {
    case .contiguous, .scattered, .top: return .data(path)
    case .hole: return .fault(path)
    case .readOnly: return .oneWay(path, allowed: .fromMemory)
    case .writeOnly: return .oneWay(path, allowed: .toMemory)
    }
  }

  private func impossibility(_ data: DataAxes) -> String? {
    if decision.interface.isLegacy, data.ring == .packed { return "a legacy driver cannot accept VIRTIO_F_RING_PACKED" }
    if decision.device.isVirtio == (data.ring == nil) { return "only virtqueues are split or packed" }
    guard decision.reachesMemory else {
      return data.shape == .contiguous ? nil : "nothing is reachable, in any shape"
    }
    switch data.shape {
    case .contiguous, .scattered, .hole: return nil
    case .readOnly:
      guard decision.isTranslated else { return "on this path memory has no permissions" }
    case .writeOnly:
      guard decision.isTranslated else { return "on this path memory has no permissions" }
      if decision.platform.unit == .sun4u { return "an entry of this IOMMU always allows reading" }
      if decision.platform.unit == .grants { return "a grant always allows reading" }
    case .top:
      if decision.platform.reach == .pool { return "the platform chooses the place of the pool" }
      if decision.platform.unit == .grants, decision.isTranslated {
        return "the other domain chooses the references"
      }
    }
    return nil
  }
}
