import PCI
import Virtio

/// Where everything is in a virtio function: BARs and capabilities.
struct VirtioPCILayout {
  /// Legacy registers, in I/O space.
  static let legacyBAR = 0
  /// The MSI-X table and its pending bits.
  static let msixBAR = 1
  /// The structures of virtio 1, a page each and the notifications last.
  static let modernBAR = 4
  static let commonOffset: UInt64 = 0x0000
  static let isrOffset: UInt64 = 0x1000
  static let deviceOffset: UInt64 = 0x2000
  static let notifyOffset: UInt64 = 0x3000

  let configuration: ConfigurationLayout
  let interface: VirtioPCIChoices.Interface
  let vectors: Int
  let pendingOffset: UInt64
  /// Bytes of a queue's notification area; 0: all share one.
  let notifyStride: UInt64
  let notifyLength: UInt64
  let modernSize: UInt64
  /// Where the configuration access capability is.
  private(set) var accessAt: Int?

  init(_ device: any VirtioDevice, _ options: VirtioPCIOptions, _ interface: VirtioPCIChoices.Interface) {
    self.interface = interface
    let queues = device.maxQueueSizes.count
    vectors = min(max(options.vectors ?? queues + 1, 0), MSIX.maxVectors)
    notifyStride =
      switch options.notifyLayout {
      case .single: 0
      case .pagePerQueue: 4096
      case .cellPerQueue: 4
      }
    notifyLength = notifyStride == 0 ? 4 : notifyStride * UInt64(max(queues, 1))
    modernSize = Self.power(Self.notifyOffset + notifyLength, atLeast: 0x4000)
    pendingOffset = Self.power(UInt64(max(vectors, 1) * MSIX.entryBytes), atLeast: 2048)

    var layout = ConfigurationLayout(Self.identity(device.id, options, interface), pin: .a)
    if interface != .modern {
      let bytes = UInt64(
        PCITransport.LegacyRegister.deviceConfiguration(isMSIXEnabled: true) + device.configurationSize)
      layout.add(BAR(index: Self.legacyBAR, kind: .io, size: Self.power(bytes, atLeast: 32)))
    }
    if vectors > 0 {
      layout.add(BAR(index: Self.msixBAR, kind: .memory32, size: 2 * pendingOffset))
      layout.addMSIX(count: vectors, table: (Self.msixBAR, 0), pending: (Self.msixBAR, UInt32(pendingOffset)))
    }
    if interface != .legacy {
      layout.add(BAR(index: Self.modernBAR, kind: .memory64(prefetchable: false), size: modernSize))
      func add(
        _ type: PCITransport.Structure, _ offset: UInt64, _ length: UInt64, _ extra: [UInt8] = [],
        writable: [UInt8] = []
      ) -> Int {
        layout.addCapability(
          PCICapabilityID.vendorSpecific, Self.capability(type, offset, length, extra), writable: writable)
      }
      _ = add(.common, Self.commonOffset, UInt64(PCITransport.CommonRegister.byteCount))
      _ = add(.notify, Self.notifyOffset, notifyLength, Self.bytes(notifyStride))
      _ = add(.isr, Self.isrOffset, 4)
      if device.configurationSize > 0 {
        _ = add(.device, Self.deviceOffset, UInt64((device.configurationSize + 3) & ~3))
      }
      // BAR, offset, length and data are the driver's (§4.1.4.9).
      accessAt = add(
        .configurationAccess, 0, 0, [0, 0, 0, 0],
        writable: [0, 0, 0xff, 0, 0, 0] + [UInt8](repeating: 0xff, count: 12))
    }
    if let kind = options.express { layout.addExpress(kind) }
    configuration = layout
  }

  private static func identity(
    _ id: DeviceID, _ options: VirtioPCIOptions, _ interface: VirtioPCIChoices.Interface
  ) -> PCIIdentity {
    let classCode: UInt32 =
      switch id {
      case .network: 0x02_00_00
      case .block, .scsi: 0x01_00_00
      case .console: 0x07_80_00
      case .iommu: 0x08_06_00
      default: 0x00_ff_00
      }
    let isModern = interface == .modern
    // §4.1.2.1 and §4.1.2.3: revision and subsystem keep legacy drivers off, or let them in.
    var identity = PCIIdentity(
      vendorID: PCITransport.vendorID,
      deviceID: isModern
        ? PCITransport.deviceID(id) : PCITransport.transitionalDeviceID(id) ?? PCITransport.deviceID(id),
      revisionID: isModern ? 1 : 0, classCode: classCode, subsystemVendorID: PCITransport.vendorID,
      subsystemID: isModern ? 0x1100 : UInt16(truncatingIfNeeded: id.rawValue))
    options.rename?(&identity)
    return identity
  }

  /// A virtio structure capability without its ID and pointer.
  private static func capability(
    _ type: PCITransport.Structure, _ offset: UInt64, _ length: UInt64, _ extra: [UInt8]
  ) -> [UInt8] {
    [
      UInt8(PCITransport.Capability.byteCount + extra.count), type.rawValue,
      UInt8(type == .configurationAccess ? 0 : modernBAR), 0, 0, 0,
    ]
      + bytes(offset) + bytes(length) + extra
  }

  private static func bytes(_ value: UInt64) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }

  private static func power(_ bytes: UInt64, atLeast least: UInt64) -> UInt64 {
    var size = least
    while size < bytes { size *= 2 }
    return size
  }
}
