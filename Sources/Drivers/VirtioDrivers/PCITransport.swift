internal import DMA
public import IOMMUInterface
public import PCI
public import Virtio

/// Why a function cannot be driven.
public enum PCITransportError: Error, Hashable, Sendable {
  /// Vendor or device ID are not virtio's.
  case notVirtio(vendorID: UInt16, deviceID: UInt16)
  /// A structure that every modern device has is not there, or too short.
  case missing(PCITransport.Structure)
  /// Neither interface: no structures, and no I/O BAR 0.
  case noInterface
}

/// The driver's side of virtio over PCI (§4.1): the structures of virtio 1, or the legacy registers.
///
/// A device with wrong values in its registers causes an error, or breaks only its own registers; it cannot make the
/// driver hang.
public final class PCIDriverTransport: DriverTransport {
  struct Location {
    var bar: Int
    var offset: UInt64
    var length: UInt64
  }
  /// The structures of a modern device.
  struct Modern {
    var common: Location
    var notify: Location
    var isr: Location
    var device: Location?
    var notifyMultiplier: UInt32
  }
  enum Interface {
    case modern(Modern)
    case legacy
  }
  let access: any PCIFunctionAccess
  let interface: Interface
  public let deviceID: DeviceID
  /// Whether the legacy registers are used.
  public var isLegacy: Bool { if case .legacy = interface { true } else { false } }
  private var accepted: Features = []
  /// By queue: the address of its notification, and the value that names the queue.
  private var doorbells: [Int: (bar: Int, offset: UInt64, name: UInt16)] = [:]
  /// How often a register is read that should change soon.
  static var patience: Int { 1_000_000 }

  private typealias CommonRegister = PCITransport.CommonRegister
  private typealias LegacyRegister = PCITransport.LegacyRegister

  /// Finds the device's interface (§4.1.5.1.1), and enables the function's memory, I/O and bus mastering.
  ///
  /// - Parameter legacy: use the legacy registers of a transitional device.
  public init(_ access: any PCIFunctionAccess, legacy: Bool = false) throws(PCITransportError) {
    let vendor = UInt16(truncatingIfNeeded: access.readConfiguration(at: PCIRegister.vendorID, width: 2))
    let device = UInt16(truncatingIfNeeded: access.readConfiguration(at: PCIRegister.deviceID, width: 2))
    guard vendor == PCITransport.vendorID, let id = PCITransport.type(ofDeviceID: device) else {
      throw .notVirtio(vendorID: vendor, deviceID: device)
    }
    let structures = PCIStructures(access)
    if legacy || structures.isEmpty {
      guard access.readConfiguration(at: PCIRegister.bar(0), width: 4) & 1 == 1 else { throw .noInterface }
      interface = .legacy
    } else {
      interface = .modern(try structures.modern())
    }
    self.access = access
    deviceID = id
    let command = PCICommand(
      rawValue: UInt16(truncatingIfNeeded: access.readConfiguration(at: PCIRegister.command, width: 2)))
    let enabled = command.union([.memorySpace, .ioSpace, .busMaster])
    access.writeConfiguration(at: PCIRegister.command, width: 2, UInt32(enabled.rawValue))
  }

  // MARK: DriverTransport

  public var status: DeviceStatus {
    get {
      DeviceStatus(
        rawValue: UInt8(truncatingIfNeeded: readRegister(CommonRegister.deviceStatus, LegacyRegister.deviceStatus, 1)))
    }
    set {
      if newValue.isEmpty {
        accepted = []
        doorbells = [:]
      }
      writeRegister(CommonRegister.deviceStatus, LegacyRegister.deviceStatus, 1, UInt32(newValue.rawValue))
    }
  }

  public var deviceFeatures: Features {
    guard case .modern(let modern) = interface else {
      return Features(word: UInt64(readLegacy(LegacyRegister.deviceFeatures, 4)))
    }
    var features = Features()
    for word in 0..<UInt32(4) {
      write(modern.common, CommonRegister.deviceFeatureSelect, 4, word)
      features.rawValue |= UInt128(read(modern.common, CommonRegister.deviceFeature, 4)) << UInt128(32 * word)
    }
    return features
  }

  public func accept(_ features: Features) {
    accepted = features
    guard case .modern(let modern) = interface else {
      return writeLegacy(LegacyRegister.driverFeatures, 4, UInt32(truncatingIfNeeded: features.rawValue))
    }
    for word in 0..<UInt32(4) {
      write(modern.common, CommonRegister.driverFeatureSelect, 4, word)
      write(
        modern.common, CommonRegister.driverFeature, 4,
        UInt32(truncatingIfNeeded: features.rawValue >> UInt128(32 * word)))
    }
  }

  public var configurationGeneration: UInt32 {
    guard case .modern(let modern) = interface else { return 0 }
    return read(modern.common, CommonRegister.configurationGeneration, 1)
  }

  public func readConfiguration(at offset: Int, into bytes: inout MutableSpan<UInt8>) {
    ConfigurationFields.read(at: offset, into: &bytes) { readDevice($0, $1) }
  }

  public func writeConfiguration(at offset: Int, from bytes: Span<UInt8>) {
    ConfigurationFields.write(at: offset, from: bytes) { writeDevice($0, $1, $2) }
  }

  public var hasFixedQueueSizes: Bool { isLegacy }

  public func maxQueueSize(_ index: Int) -> UInt16 {
    select(index)
    return UInt16(truncatingIfNeeded: readRegister(CommonRegister.queueSize, LegacyRegister.queueSize, 2))
  }

  /// The legacy interface has no choice of size or of the areas' distance: the layout is that of
  /// `QueueLayout(legacyAt:size:alignment:)`, on a page, with the size the device wants.
  public func enableQueue(_ index: Int, _ layout: QueueLayout) {
    select(index)
    guard case .modern(let modern) = interface else {
      doorbells[index] = (0, UInt64(LegacyRegister.queueNotify), UInt16(truncatingIfNeeded: index))
      return writeLegacy(
        LegacyRegister.queueAddress, 4,
        UInt32(truncatingIfNeeded: layout.descriptorArea.rawValue / PCITransport.legacyPageSize))
    }
    write(modern.common, CommonRegister.queueSize, 2, UInt32(layout.size))
    for (at, address) in [
      (CommonRegister.queueDescriptor, layout.descriptorArea), (CommonRegister.queueDriver, layout.driverArea),
      (CommonRegister.queueDevice, layout.deviceArea),
    ] {
      write(modern.common, at, 4, UInt32(truncatingIfNeeded: address.rawValue))
      write(modern.common, at + 4, 4, UInt32(truncatingIfNeeded: address.rawValue >> 32))
    }
    let place = read(modern.common, CommonRegister.queueNotifyOffset, 2)
    let isNamed = accepted.contains(.notificationConfigurationData)
    let name =
      isNamed ? read(modern.common, CommonRegister.queueNotificationData, 2) : UInt32(truncatingIfNeeded: index)
    doorbells[index] = (
      modern.notify.bar, modern.notify.offset &+ UInt64(place) &* UInt64(modern.notifyMultiplier),
      UInt16(truncatingIfNeeded: name)
    )
    write(modern.common, CommonRegister.queueEnable, 2, 1)
  }

  public func resetQueue(_ index: Int) {
    guard case .modern(let modern) = interface else { return }
    select(index)
    doorbells[index] = nil
    write(modern.common, CommonRegister.queueReset, 2, 1)
    for _ in 0..<Self.patience where read(modern.common, CommonRegister.queueReset, 2) == 0 { return }
  }

  public func notify(_ index: Int, data: UInt16) {
    guard let doorbell = doorbells[index] else { return }
    if accepted.contains(.notificationData) {
      access.writeBAR(doorbell.bar, at: doorbell.offset, width: 4, UInt32(doorbell.name) | UInt32(data) << 16)
    } else {
      access.writeBAR(doorbell.bar, at: doorbell.offset, width: 2, UInt32(doorbell.name))
    }
  }

  // MARK: Interrupts

  /// ISR status, which reading empties (§4.1.4.5).
  public func takeISR() -> UInt8 {
    switch interface {
    case .modern(let modern): UInt8(truncatingIfNeeded: read(modern.isr, 0, 1))
    case .legacy: UInt8(truncatingIfNeeded: readLegacy(LegacyRegister.isrStatus, 1))
    }
  }

  /// Enables MSI-X with a message for each of the first vectors.
  ///
  /// - Returns: false: there are not as many, or there is no MSI-X; nothing has changed then.
  public func enableMSIX(_ messages: [InterruptMessage]) -> Bool {
    guard let at = msixAt else { return false }
    let control = access.readConfiguration(at: at + 2, width: 2)
    let table = access.readConfiguration(at: at + 4, width: 4)
    guard messages.count <= Int(control & 0x7ff) + 1, table & 7 < 6 else { return false }
    for (i, message) in messages.enumerated() {
      let words = [
        UInt32(truncatingIfNeeded: message.address), UInt32(truncatingIfNeeded: message.address >> 32), message.data, 0,
      ]
      for (j, word) in words.enumerated() {
        access.writeBAR(Int(table & 7), at: UInt64(table & ~7) + UInt64(16 * i + 4 * j), width: 4, word)
      }
    }
    access.writeConfiguration(at: at + 2, width: 2, control & 0x3fff | 0x8000)
    return true
  }

  /// Maps a queue's used buffer notifications to a vector, and says whether the device could.
  public func setVector(_ vector: UInt16, ofQueue index: Int) -> Bool {
    select(index)
    writeRegister(CommonRegister.queueVector, LegacyRegister.queueVector, 2, UInt32(vector))
    return readRegister(CommonRegister.queueVector, LegacyRegister.queueVector, 2) == vector
  }

  /// Maps configuration change notifications to a vector, and says whether the device could.
  public func setConfigurationVector(_ vector: UInt16) -> Bool {
    writeRegister(CommonRegister.configurationVector, LegacyRegister.configurationVector, 2, UInt32(vector))
    return readRegister(CommonRegister.configurationVector, LegacyRegister.configurationVector, 2) == vector
  }

  // MARK: Registers

  private func select(_ index: Int) {
    writeRegister(CommonRegister.queueSelect, LegacyRegister.queueSelect, 2, UInt32(truncatingIfNeeded: index))
  }

  /// Where the MSI-X capability is.
  private var msixAt: Int? { PCIStructures.capabilities(access).first(where: { $0.id == PCICapabilityID.msix })?.at }

  private var isMSIXEnabled: Bool {
    guard let at = msixAt else { return false }
    return access.readConfiguration(at: at + 2, width: 2) & 0x8000 != 0
  }

  private func readDevice(_ offset: Int, _ width: Int) -> UInt32 {
    switch interface {
    case .modern(let modern): modern.device.map { read($0, offset, width) } ?? 0
    case .legacy: readLegacy(LegacyRegister.deviceConfiguration(isMSIXEnabled: isMSIXEnabled) &+ offset, width)
    }
  }

  private func writeDevice(_ offset: Int, _ width: Int, _ value: UInt32) {
    switch interface {
    case .modern(let modern): if let device = modern.device { write(device, offset, width, value) }
    case .legacy: writeLegacy(LegacyRegister.deviceConfiguration(isMSIXEnabled: isMSIXEnabled) &+ offset, width, value)
    }
  }

  /// A register that both interfaces have, each at a place of its own.
  private func readRegister(_ modern: Int, _ legacy: Int, _ width: Int) -> UInt32 {
    if case .modern(let structures) = interface {
      read(structures.common, modern, width)
    } else {
      readLegacy(legacy, width)
    }
  }
  private func writeRegister(_ modern: Int, _ legacy: Int, _ width: Int, _ value: UInt32) {
    if case .modern(let structures) = interface {
      write(structures.common, modern, width, value)
    } else {
      writeLegacy(legacy, width, value)
    }
  }

  private func read(_ location: Location, _ at: Int, _ width: Int) -> UInt32 {
    access.readBAR(location.bar, at: location.offset &+ UInt64(truncatingIfNeeded: at), width: width)
  }
  private func write(_ location: Location, _ at: Int, _ width: Int, _ value: UInt32) {
    access.writeBAR(location.bar, at: location.offset &+ UInt64(truncatingIfNeeded: at), width: width, value)
  }
  private func readLegacy(_ at: Int, _ width: Int) -> UInt32 {
    access.readBAR(0, at: UInt64(truncatingIfNeeded: at), width: width)
  }
  private func writeLegacy(_ at: Int, _ width: Int, _ value: UInt32) {
    access.writeBAR(0, at: UInt64(truncatingIfNeeded: at), width: width, value)
  }
}
