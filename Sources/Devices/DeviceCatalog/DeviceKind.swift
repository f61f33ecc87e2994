internal import NVMe
public import Virtio
internal import VirtioBlock
internal import VirtioDrivers
internal import VirtioEntropy

/// A kind of device, by the name that it has in commands and files: what can be made of it, and how a back-end of it is
/// checked.
///
/// ``all`` is the one list of kinds. Commands, the machine and its matrix, and `sluice check` ask it.
public struct DeviceKind: RawRepresentable, Hashable, Sendable {
  /// `blk`.
  public let rawValue: String
  /// How a back-end of this kind is checked; nil where no vhost-user back-end is of it.
  public let probe: DeviceProbe?
  /// The device, and the driver of it; nil where Sluice has none.
  public let model: DeviceModel?

  /// - Parameter name: nil: the probe's.
  private init(_ name: String? = nil, probe: DeviceProbe? = nil, model: DeviceModel? = nil) {
    rawValue = name ?? probe?.name ?? ""
    self.probe = probe
    self.model = model
  }

  /// A kind whose device takes no options.
  private init(_ device: any OptionlessDevice.Type, driver: any VirtioDriver.Type) {
    self.init(probe: device.probe, model: .optionless(device, driver: driver))
  }

  /// Whether bytes can be read back from where they were written.
  public var isStorage: Bool { model?.isStorage ?? false }
  /// Whether feature bits are negotiated.
  public var isVirtio: Bool { model?.isVirtio ?? true }

  /// Whether there is a legacy interface to devices of this kind: to virtio devices that are older than virtio 1.
  public var hasLegacyInterface: Bool { model?.hasLegacyInterface ?? false }

  public init?(rawValue: String) {
    guard let kind = Self.all.first(where: { $0.rawValue == rawValue }) else { return nil }
    self = kind
  }

  public static func == (one: Self, other: Self) -> Bool { one.rawValue == other.rawValue }
  public func hash(into hasher: inout Hasher) { hasher.combine(rawValue) }
}

extension DeviceKind {
  /// virtio-blk.
  public static let block = DeviceKind(
    probe: .block, model: .disk(.block, { try BlockDevice(BlockOptions(disk: $0)) }, driver: BlockDriver.self))
  /// virtio-rng.
  public static let entropy = DeviceKind(EntropyDevice.self, driver: EntropyDriver.self)
  /// An NVMe controller with one namespace.
  public static let nvme = DeviceKind("nvme", model: .function(NVMeController.self, driver: NVMeDriver.self))

  /// Every kind there is.
  public static let all = [
    block, entropy, nvme, DeviceKind(probe: .network), DeviceKind(probe: .fileSystem), DeviceKind(probe: .socket),
  ]
  /// Those that a machine can have.
  public static let inMachines = all.filter { $0.model != nil }
  /// Those that a vhost-user back-end can be checked as.
  public static let checked = all.filter { $0.probe != nil }
}
