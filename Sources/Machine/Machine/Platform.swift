/// What a machine is, as far as a device's addresses are concerned: data, from which ``RunningMachine`` makes one.
///
/// Each platform that QEMU's patch of 2016 for VIRTIO_F_ACCESS_PLATFORM names has a file of its own in `Platforms`.
public struct Platform: Hashable, Sendable {
  /// What translates device addresses.
  public enum Unit: String, Hashable, Sendable, CaseIterable {
    /// Nothing: device addresses are the machine's.
    case none
    /// Intel VT-d, legacy mode.
    case vtd = "vt-d"
    /// AMD-Vi.
    case amdvi = "amd-vi"
    /// virtio-iommu (§5.13).
    case virtioIOMMU = "virtio-iommu"
    /// The translation control entries of a PPC64 host bridge.
    case tce
    /// The IOMMU of a SPARC64 host bridge.
    case sun4u
    /// Grants of a Xen guest: devices reach what was granted to them, by reference.
    case grants
  }
  /// What of the guest's memory a device can reach where no unit decides it.
  public enum Reach: Hashable, Sendable {
    /// All of it, under its guest-physical addresses.
    case everything
    /// All of it, under machine addresses that the guest has to look up, page by page: a Xen guest with paravirtual
    /// memory.
    case machineAddresses
    /// Only a pool that is shared with the host: a confidential guest.
    case pool
  }
  /// How a machine's virtio devices are attached.
  public enum Bus: String, Hashable, Sendable, CaseIterable {
    case pci
    case mmio
  }
  /// In commands and tables; lower case, with hyphens.
  public var name: String
  /// One line for a list.
  public var summary: String
  /// The case of QEMU's patch of 2016 that it stands for, in a sentence.
  public var origin: String
  public var unit = Unit.none
  public var reach = Reach.everything
  /// The guest is a Xen guest (R173).
  public var isXen = false
  /// The guest accepts only devices that can reach no memory unless it is given to them (R174).
  public var isRestricted = false
  /// The virtio device is hardware: its accesses take the path of all hardware, with any features negotiated.
  public var devicesAreHardware = false
  /// The buses that virtio devices of the machine are on.
  public var buses: [Bus] = [.pci, .mmio]
  /// Whether a controller that is not virtio can be plugged in.
  public var hasNVMe = true
  /// The processors, and with them the rings of legacy devices, are big-endian. The legacy interface here is
  /// little-endian and left out of such machines.
  public var isBigEndian = false

  public init(name: String, summary: String, origin: String) {
    self.name = name
    self.summary = summary
    self.origin = origin
  }

  /// Whether firmware describes its devices as behind an IOMMU.
  public var describesIOMMU: Bool { unit != .none }

  /// All platforms, in the order of tables.
  public static let all: [Platform] = [
    .pc, .pcVTd, .pcAMDVi, .pcVirtioIOMMU, .pcHardware, .xenPV, .xenGrants, .confidential, .sparc64, .ppc64, .s390,
  ]

  /// The platform of a name, or nil.
  public static func named(_ name: String) -> Platform? { all.first { $0.name == name } }
}
