internal import DMA
public import Virtio

/// The registers of a memory-mapped device as its driver reaches them: a machine answers with its memory.
public protocol MMIORegisterAccess: AnyObject {
  /// Reads 1, 2 or 4 bytes at an offset from the first register.
  func read(at offset: UInt64, width: Int) -> UInt32
  /// Writes 1, 2 or 4 bytes at an offset from the first register.
  func write(at offset: UInt64, width: Int, _ value: UInt32)
}

/// Why a device cannot be driven.
public enum MMIOTransportError: Error, Hashable, Sendable {
  /// MagicValue is not virtio's: there is something else, or nothing.
  case notVirtio(magic: UInt32)
  /// Neither 2 nor, for legacy devices, 1.
  case version(UInt32)
  /// A placeholder without a device: no reason to complain (§4.2.2.2).
  case noDevice
}

/// The driver's side of virtio over MMIO (§4.2): a device of virtio 1, or a legacy one.
///
/// A device with wrong values in its registers causes an error, or breaks only its own registers; it cannot make the
/// driver hang.
public final class MMIODriverTransport: DriverTransport {
  private let access: any MMIORegisterAccess
  public let deviceID: DeviceID
  /// Whether the registers are those of a legacy device.
  public let isLegacy: Bool
  private var accepted: Features = []
  /// How often a register is read that should change soon.
  static var patience: Int { 1_000_000 }

  private typealias Register = MMIOTransport.Register

  /// Looks whether there is a device, and of which version (§4.2.3.1).
  public init(_ access: any MMIORegisterAccess) throws(MMIOTransportError) {
    func read(_ at: Int) -> UInt32 { access.read(at: UInt64(at), width: 4) }
    let magic = read(Register.magicValue)
    guard magic == MMIOTransport.magic else { throw .notVirtio(magic: magic) }
    let version = read(Register.version)
    guard version == MMIOTransport.version || version == MMIOTransport.legacyVersion else { throw .version(version) }
    let id = read(Register.deviceID)
    guard id != 0 else { throw .noDevice }
    self.access = access
    deviceID = DeviceID(rawValue: id)
    isLegacy = version == MMIOTransport.legacyVersion
    if isLegacy { write(Register.guestPageSize, UInt32(PCITransport.legacyPageSize)) }
  }

  // MARK: DriverTransport

  public var status: DeviceStatus {
    get { DeviceStatus(rawValue: UInt8(truncatingIfNeeded: read(Register.status))) }
    set {
      if newValue.isEmpty { accepted = [] }
      write(Register.status, UInt32(newValue.rawValue))
    }
  }

  public var deviceFeatures: Features {
    var features = Features()
    for word in 0..<UInt32(isLegacy ? 1 : 4) {
      write(Register.deviceFeaturesSelect, word)
      features.rawValue |= UInt128(read(Register.deviceFeatures)) << UInt128(32 * word)
    }
    return features
  }

  public func accept(_ features: Features) {
    accepted = features
    for word in 0..<UInt32(isLegacy ? 1 : 4) {
      write(Register.driverFeaturesSelect, word)
      write(Register.driverFeatures, UInt32(truncatingIfNeeded: features.rawValue >> UInt128(32 * word)))
    }
  }

  public var configurationGeneration: UInt32 { isLegacy ? 0 : read(Register.configurationGeneration) }

  public func readConfiguration(at offset: Int, into bytes: inout MutableSpan<UInt8>) {
    ConfigurationFields.read(at: offset, into: &bytes) { access.read(at: Self.place($0), width: $1) }
  }

  public func writeConfiguration(at offset: Int, from bytes: Span<UInt8>) {
    ConfigurationFields.write(at: offset, from: bytes) { access.write(at: Self.place($0), width: $1, $2) }
  }

  private static func place(_ offset: Int) -> UInt64 { UInt64(truncatingIfNeeded: Register.configuration &+ offset) }

  public func maxQueueSize(_ index: Int) -> UInt16 {
    select(index)
    // What a queue can have at all (§2.6), even if the device claims more.
    return UInt16(truncatingIfNeeded: min(read(Register.queueSizeMax), 32768))
  }

  /// The legacy interface has no choice of the areas' distance: the layout is that of
  /// `QueueLayout(legacyAt:size:alignment:)`, on a page.
  public func enableQueue(_ index: Int, _ layout: QueueLayout) {
    select(index)
    write(Register.queueSize, UInt32(layout.size))
    guard !isLegacy else {
      write(Register.queueAlign, UInt32(PCITransport.legacyPageSize))
      return write(
        Register.queuePageNumber,
        UInt32(truncatingIfNeeded: layout.descriptorArea.rawValue / PCITransport.legacyPageSize))
    }
    for (at, address) in [
      (Register.queueDescriptor, layout.descriptorArea), (Register.queueDriver, layout.driverArea),
      (Register.queueDevice, layout.deviceArea),
    ] {
      write(at, UInt32(truncatingIfNeeded: address.rawValue))
      write(at + 4, UInt32(truncatingIfNeeded: address.rawValue >> 32))
    }
    write(Register.queueReady, 1)
  }

  public func resetQueue(_ index: Int) {
    guard !isLegacy else { return }
    select(index)
    write(Register.queueReset, 1)
    for _ in 0..<Self.patience where read(Register.queueReset) == 0 { return }
  }

  /// Takes one queue back without VIRTIO_F_RING_RESET, as this transport can (§4.2.2.2, QueueReady), and returns
  /// whether the device released it.
  public func disableQueue(_ index: Int) -> Bool {
    select(index)
    let at = isLegacy ? Register.queuePageNumber : Register.queueReady
    write(at, 0)
    return read(at) == 0
  }

  public func notify(_ index: Int, data: UInt16) {
    let name = UInt32(UInt16(truncatingIfNeeded: index))
    write(Register.queueNotify, accepted.contains(.notificationData) ? name | UInt32(data) << 16 : name)
  }

  // MARK: Interrupts

  /// What the interrupt is for, acknowledged: bits of `MMIOTransport.Interrupt`. Others that a device shows are left
  /// alone.
  public func takeInterrupts() -> UInt32 {
    let events =
      read(Register.interruptStatus) & (MMIOTransport.Interrupt.usedBuffer | MMIOTransport.Interrupt.configuration)
    if events != 0 { write(Register.interruptACK, events) }
    return events
  }

  // MARK: Registers

  private func select(_ index: Int) { write(Register.queueSelect, UInt32(truncatingIfNeeded: index)) }
  private func read(_ at: Int) -> UInt32 { access.read(at: UInt64(at), width: 4) }
  private func write(_ at: Int, _ value: UInt32) { access.write(at: UInt64(at), width: 4, value) }
}
