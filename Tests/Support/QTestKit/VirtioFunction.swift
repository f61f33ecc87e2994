/// A modern virtio device as a PCI function, register by register (§4.1.4). Nothing here is shared with the project's
/// own sources.
public final class VirtioFunction {
  /// Bits of the device status (§2.1).
  public enum Status {
    public static let acknowledge: UInt8 = 1
    public static let driver: UInt8 = 2
    public static let driverOK: UInt8 = 4
    public static let featuresOK: UInt8 = 8
    public static let needsReset: UInt8 = 64
    public static let failed: UInt8 = 128
  }

  public let qemu: QEMU
  public let pci: PCI
  public let address: PCIAddress
  private let common: UInt64
  private let notification: UInt64
  private let notificationMultiplier: UInt64
  private let interruptStatus: UInt64
  private let device: UInt64
  private let deviceLength: Int

  /// Finds the structures through the vendor capabilities of a function that has its base addresses.
  public init(_ pci: PCI, _ address: PCIAddress) throws(QTestError) {
    self.pci = pci
    self.address = address
    qemu = pci.qemu
    guard try pci.read(address, 0x00, as: UInt16.self) == 0x1af4 else {
      throw .missing("a virtio function at \(address)")
    }
    var found: [UInt8: (base: UInt64, length: Int, capability: Int)] = [:]
    for capability in try pci.capabilities(address, id: 0x09) {
      let type = try pci.read(address, capability + 3, as: UInt8.self)
      guard type <= 4, found[type] == nil else { continue }  // the first of a type counts
      let bar = try pci.read(address, capability + 4, as: UInt8.self)
      let offset = try pci.read(address, capability + 8, as: UInt32.self)
      let length = try pci.read(address, capability + 12, as: UInt32.self)
      found[type] = (try pci.base(address, Int(bar)) + UInt64(offset), Int(length), capability)
    }
    guard let common = found[1], let notify = found[2], let isr = found[3], let device = found[4] else {
      throw .missing("a virtio structure among \(found.keys.sorted())")
    }
    self.common = common.base
    notification = notify.base
    notificationMultiplier = UInt64(try pci.read(address, notify.capability + 16, as: UInt32.self))
    interruptStatus = isr.base
    self.device = device.base
    deviceLength = device.length
  }

  /// The virtio device type: 2 is a block device.
  public func deviceType() throws(QTestError) -> UInt16 { try pci.read(address, 0x02, as: UInt16.self) - 0x1040 }

  /// The device status.
  public func status() throws(QTestError) -> UInt8 { try qemu.load(common + 0x14) }

  /// Writes the device status.
  public func setStatus(_ status: UInt8) throws(QTestError) { try qemu.store(common + 0x14, status) }

  /// Device reset: writes 0 and waits until 0 reads back (§4.1.4.3.2).
  public func reset() throws(QTestError) {
    try setStatus(0)
    try qemu.wait(for: "device status 0") { () throws(QTestError) in try status() == 0 }
  }

  /// The 64 feature bits the device offers.
  public func offeredFeatures() throws(QTestError) -> UInt64 {
    var features: UInt64 = 0
    for word in 0..<2 as Range<UInt32> {
      try qemu.store(common + 0x00, word)
      features |= UInt64(try qemu.load(common + 0x04, as: UInt32.self)) << (UInt64(word) * 32)
    }
    return features
  }

  /// Writes the 64 feature bits the driver takes.
  public func acceptFeatures(_ features: UInt64) throws(QTestError) {
    for word in 0..<2 as Range<UInt32> {
      try qemu.store(common + 0x08, word)
      try qemu.store(common + 0x0c, UInt32(truncatingIfNeeded: features >> (UInt64(word) * 32)))
    }
  }

  /// How many virtqueues there are.
  public func queueCount() throws(QTestError) -> UInt16 { try qemu.load(common + 0x12) }

  /// The largest size of a queue.
  public func maxQueueSize(_ index: UInt16) throws(QTestError) -> UInt16 {
    try qemu.store(common + 0x16, index)
    return try qemu.load(common + 0x18)
  }

  /// Writes size and areas of a queue and enables it.
  /// - `vector`: the MSI-X vector of its notifications; 0xffff for none.
  public func enableQueue(
    _ index: UInt16, size: UInt16, descriptor: UInt64, driver: UInt64, device: UInt64, vector: UInt16 = 0xffff
  ) throws(QTestError) {
    try qemu.store(common + 0x16, index)
    try qemu.store(common + 0x18, size)
    try qemu.store(common + 0x1a, vector)
    for (offset, area) in [(0x20 as UInt64, descriptor), (0x28, driver), (0x30, device)] {
      try qemu.store(common + offset, UInt32(truncatingIfNeeded: area))
      try qemu.store(common + offset + 4, UInt32(truncatingIfNeeded: area >> 32))
    }
    try qemu.store(common + 0x1c, UInt16(1))
  }

  /// The areas as the device shows them: descriptor, driver, device.
  public func queueAreas(_ index: UInt16) throws(QTestError) -> [UInt64] {
    try qemu.store(common + 0x16, index)
    var areas: [UInt64] = []
    for offset in [0x20, 0x28, 0x30] as [UInt64] {
      let low = try qemu.load(common + offset, as: UInt32.self)
      let high = try qemu.load(common + offset + 4, as: UInt32.self)
      areas.append(UInt64(high) << 32 | UInt64(low))
    }
    return areas
  }

  /// Where an available buffer notification of this queue goes.
  public func notificationAddress(_ index: UInt16) throws(QTestError) -> UInt64 {
    try qemu.store(common + 0x16, index)
    return notification + UInt64(try qemu.load(common + 0x1e, as: UInt16.self)) * notificationMultiplier
  }

  /// The interrupt status, cleared by reading it: bit 0 a queue, bit 1 the configuration.
  public func takeInterrupts() throws(QTestError) -> UInt8 { try qemu.load(interruptStatus) }

  /// An integer of the device's configuration space.
  public func configuration<T: FixedWidthInteger>(_ offset: Int, as type: T.Type = T.self) throws(QTestError) -> T {
    guard offset + T.bitWidth / 8 <= deviceLength else {
      throw .missing("configuration byte \(offset) of \(deviceLength)")
    }
    return try qemu.load(device + UInt64(offset))
  }

  /// Writes a byte of the device's configuration space.
  public func setConfiguration(_ offset: Int, _ value: UInt8) throws(QTestError) {
    try qemu.store(device + UInt64(offset), value)
  }
}

/// Feature bits by number (§6, §5.2.3).
public enum Feature {
  public static let sizeMax: UInt64 = 1 << 1
  public static let segMax: UInt64 = 1 << 2
  public static let geometry: UInt64 = 1 << 4
  public static let readOnly: UInt64 = 1 << 5
  public static let blockSize: UInt64 = 1 << 6
  public static let flush: UInt64 = 1 << 9
  public static let topology: UInt64 = 1 << 10
  public static let configWCE: UInt64 = 1 << 11
  public static let multiQueue: UInt64 = 1 << 12
  public static let discard: UInt64 = 1 << 13
  public static let writeZeroes: UInt64 = 1 << 14
  public static let indirect: UInt64 = 1 << 28
  public static let eventIndex: UInt64 = 1 << 29
  public static let version1: UInt64 = 1 << 32
  public static let accessPlatform: UInt64 = 1 << 33
  public static let packed: UInt64 = 1 << 34
  public static let inOrder: UInt64 = 1 << 35
  public static let ringReset: UInt64 = 1 << 40
}
