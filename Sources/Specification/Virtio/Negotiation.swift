/// The device's side of initialization (§3.1.1): what the driver accepts, and how far it has come.
///
///     (0) ── ACKNOWLEDGE, DRIVER ──▶ features ─ FEATURES_OK ─▶ accepted ── DRIVER_OK ──▶ live ◀─ DRIVER_OK ─ suspended
///      ▲                               ▲   │ refused: the bit does not stick              └─── SUSPEND ───▶
///      └── 0 written: reset ───────────┴───┘
///
/// What is offered and has to be accepted: VIRTIO_F_VERSION_1, and VIRTIO_F_ACCESS_PLATFORM, so that a driver that
/// ignores the latter is refused rather than translated by surprise. A device that is translated in any case may leave
/// the latter to its driver.
public struct DeviceNegotiation: Sendable {
  /// The effect on the device of a write to the device status field.
  public enum Step: Hashable, Sendable {
    /// Nothing to be done.
    case none
    /// Everything is to be forgotten (§2.4).
    case reset
    /// FEATURES_OK sticks: the negotiated features are final.
    case featuresAccepted
    /// FEATURES_OK does not stick.
    case featuresRefused
    /// DRIVER_OK: the device is live.
    case driverReady
    /// The driver has given up.
    case driverFailed
    /// The device is to stand still, and goes on where it was (§3.4).
    case suspend
    /// The device goes on.
    case resume
  }

  /// What the device offers; the same for as long as the device is there (R017).
  public let offeredFeatures: Features
  /// What the driver has to accept of it, or FEATURES_OK does not stick.
  public let requiredFeatures: Features
  /// What the driver wrote last, whether it may or not.
  public private(set) var driverFeatures: Features = []
  /// The device status field, without DEVICE_NEEDS_RESET, which is the device's.
  public private(set) var status: DeviceStatus = []
  /// The device is used through the legacy interface since its last reset.
  public private(set) var isLegacy = false

  /// A device that no driver has met.
  ///
  /// - Parameter required: what a driver has to accept where it is offered.
  public init(offered: Features, requiring required: Features = [.version1, .accessPlatform]) {
    offeredFeatures = offered
    requiredFeatures = offered.intersection(required)
  }

  /// What was negotiated: empty before FEATURES_OK, and without it the legacy interface's 32 bits.
  public var negotiated: Features {
    if isLegacy { return driverFeatures }
    return status.contains(.featuresOK) ? driverFeatures : []
  }

  /// Bits `32 * word` and up of what the driver accepts. After FEATURES_OK nothing changes any more (R014).
  public mutating func accept(_ bits: UInt32, word: Int) {
    guard (0..<4).contains(word), !status.contains(.featuresOK), !isLegacy else { return }
    let shift = UInt128(32 * word)
    driverFeatures.rawValue = driverFeatures.rawValue & ~(UInt128(0xffff_ffff) << shift) | UInt128(bits) << shift
  }

  /// A write to the device status field. Bits once set stay until a reset (§2.1.1).
  public mutating func write(_ new: DeviceStatus) -> Step {
    if new.isEmpty { return forget() }
    guard !status.contains(.failed) else { return .none }
    status.formUnion(new.intersection([.acknowledge, .driver]))
    if new.contains(.failed) {
      status.insert(.failed)
      return .driverFailed
    }
    if status.contains(.suspend) {
      guard new.contains(.driverOK) else { return .none }
      status.remove(.suspend)
      status.insert(.driverOK)
      return .resume
    }
    var step = Step.none
    if new.contains(.featuresOK), !status.contains(.featuresOK) {
      guard isAcceptable else { return .featuresRefused }
      status.insert(.featuresOK)
      step = .featuresAccepted
    }
    if status.contains(.driverOK) {
      guard new.contains(.suspend), driverFeatures.contains(.suspend) else { return step }
      status.insert(.suspend)
      status.remove(.driverOK)
      return .suspend
    }
    if new.contains(.driverOK), status.contains(.featuresOK) {
      status.insert(.driverOK)
      return .driverReady
    }
    return step
  }

  /// Whether FEATURES_OK may stick: nothing that was not offered, and everything that cannot be done without.
  private var isAcceptable: Bool {
    driverFeatures.isSubset(of: offeredFeatures) && requiredFeatures.isSubset(of: driverFeatures)
  }

  /// A write to the status register of the legacy interface (§3.1.2): there is no FEATURES_OK to wait for.
  public mutating func writeLegacy(_ new: DeviceStatus) -> Step {
    if new.isEmpty { return forget() }
    guard !status.contains(.failed) else { return .none }
    isLegacy = true
    status.formUnion(new.intersection([.acknowledge, .driver]))
    if new.contains(.failed) {
      status.insert(.failed)
      return .driverFailed
    }
    guard new.contains(.driverOK), !status.contains(.driverOK) else { return .none }
    status.insert(.driverOK)
    return .driverReady
  }

  /// What the driver accepts through the legacy interface: 32 bits, and of them what was offered (§2.2.3).
  public mutating func acceptLegacy(_ bits: UInt32) {
    isLegacy = true
    driverFeatures = Features(word: UInt64(bits)).intersection(offeredFeatures.union(.anyLayout))
  }

  private mutating func forget() -> Step {
    self = Self(offered: offeredFeatures, requiring: requiredFeatures)
    return .reset
  }
}
