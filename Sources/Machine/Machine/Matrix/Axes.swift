public import DeviceCatalog
public import Virtio

/// How old the host is.
public enum HostAge: String, Hashable, Sendable, CaseIterable {
  /// From before the feature bit: it has no such property, and its virtio devices use physical addresses.
  case old
  case new
}

/// What the driver accepts of what it is offered.
public enum Acknowledgement: String, Hashable, Sendable, CaseIterable {
  /// All of it.
  case all
  /// All but bit 33.
  case notPlatform = "not-33"
  /// Neither VERSION_1 nor bit 33, through the interface of virtio 1.
  case neither
  /// What a legacy driver sees: 32 bits.
  case legacy
}

/// How driver and device meet.
public enum Interface: String, Hashable, Sendable, CaseIterable {
  case modern
  /// A transitional PCI device, used through the interface of virtio 1.
  case transitional
  /// A PCI device used through the legacy registers.
  case legacy
  case mmio
  case mmioLegacy = "mmio-legacy"
  /// Not a virtio device.
  case nvme

  var isLegacy: Bool { self == .legacy || self == .mmioLegacy }
  /// The bus it belongs to; nil: any that has PCI.
  var bus: Platform.Bus { self == .mmio || self == .mmioLegacy ? .mmio : .pci }
}

/// The state of the IOMMU for the device, if there is one.
public enum UnitState: String, Hashable, Sendable, CaseIterable {
  /// There is none.
  case none
  /// It lets the device's addresses pass as they are.
  case bypass
  /// The device is in a domain, where its driver maps what it needs.
  case attached
  /// Nothing was set up for the device.
  case unattached
}

/// The format of a virtqueue (§2.6).
public enum RingKind: String, Hashable, Sendable, CaseIterable { case split, packed }

/// Whether descriptors are in the ring or in tables; for NVMe, whether data is described by PRPs or by SGLs.
public enum DescriptorKind: String, Hashable, Sendable, CaseIterable { case direct, indirect }

/// How a request's buffer is mapped.
public enum Shape: String, Hashable, Sendable, CaseIterable {
  /// One piece, from the middle of a page on.
  case contiguous
  /// Pages that are not next to each other in memory.
  case scattered
  /// A page in its middle is not there.
  case hole
  /// The device may only read it.
  case readOnly = "read-only"
  /// The device may only write it.
  case writeOnly = "write-only"
  /// It ends with the last address there is.
  case top
}

/// What data a cell moves, and how.
public struct DataAxes: Hashable, Sendable {
  /// nil for what is no virtqueue.
  public var ring: RingKind?
  public var descriptors: DescriptorKind
  public var shape: Shape
}

/// How a device is configured and met: everything but the data.
public struct Decision: Hashable, Sendable {
  public var platform: Platform
  public var host: HostAge
  public var property: OnOffAuto
  public var acknowledgement: Acknowledgement
  public var interface: Interface
  public var state: UnitState
  public var device: DeviceKind

  public init(
    platform: Platform, host: HostAge, property: OnOffAuto, acknowledgement: Acknowledgement, interface: Interface,
    state: UnitState,
    device: DeviceKind
  ) {
    self.platform = platform
    self.host = host
    self.property = property
    self.acknowledgement = acknowledgement
    self.interface = interface
    self.state = state
    self.device = device
  }

  /// The parts of its name, as they are typed: `pc-vtd/new/on/all/modern/attached/blk`.
  public var name: String {
    [
      platform.name, host.rawValue, property.rawValue, acknowledgement.rawValue, interface.rawValue, state.rawValue,
      device.rawValue,
    ].joined(separator: "/")
  }
}

/// One case of the truth table: a decision, and for those that move data, which data.
public struct Cell: Hashable, Sendable {
  public var decision: Decision
  public var data: DataAxes?

  /// As ``Decision/name``, followed by `/packed/indirect/hole` where data moves.
  public var name: String {
    guard let data else { return decision.name }
    return [decision.name, data.ring?.rawValue ?? "queue", data.descriptors.rawValue, data.shape.rawValue].joined(
      separator: "/")
  }
}
