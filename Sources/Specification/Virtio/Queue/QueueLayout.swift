public import DMA

/// Where a queue is and how large, as the driver programmed it (§2.6). Addresses are kept as the driver wrote them.
public struct QueueLayout: Hashable, Sendable {
  /// Descriptors in the ring: 1...32768; a power of two for a split ring.
  public var size: UInt16
  /// Where the descriptors are: a multiple of 16.
  public var descriptorArea: DMAAddress
  /// Split: the available ring, a multiple of 2. Packed: the driver event suppression structure, a multiple of 4.
  public var driverArea: DMAAddress
  /// Split: the used ring. Packed: the device event suppression structure. A multiple of 4.
  public var deviceArea: DMAAddress

  /// Where the driver put the queue; nothing is checked before ``fault(packed:)``.
  public init(size: UInt16, descriptorArea: DMAAddress, driverArea: DMAAddress, deviceArea: DMAAddress) {
    self.size = size
    self.descriptorArea = descriptorArea
    self.driverArea = driverArea
    self.deviceArea = deviceArea
  }

  /// Bytes of each area (§2.7, §2.8). The event fields at the ends of a split ring's areas count only when `eventIndex`
  /// says that they are negotiated.
  public func byteCounts(packed: Bool, eventIndex: Bool) -> (descriptor: Int, driver: Int, device: Int) {
    let n = Int(size)
    if packed { return (16 * n, 4, 4) }
    let event = eventIndex ? 2 : 0
    return (16 * n, 4 + 2 * n + event, 4 + 8 * n + event)
  }

  /// The rule of §2.6 and §2.7 or §2.8 that the layout breaks, or nil.
  public func fault(packed: Bool) -> QueueError? {
    guard size > 0, size <= 32768 else { return .size(size) }
    if !packed, size & (size - 1) != 0 { return .size(size) }
    if descriptorArea.rawValue & 15 != 0 { return .misaligned(descriptorArea) }
    if driverArea.rawValue & (packed ? 3 : 1) != 0 { return .misaligned(driverArea) }
    if deviceArea.rawValue & 3 != 0 { return .misaligned(deviceArea) }
    return nil
  }

  /// The device addresses of the three areas, of those that do not pass the end of the address space.
  func areas(packed: Bool, eventIndex: Bool) -> [ClosedRange<UInt64>] {
    let counts = byteCounts(packed: packed, eventIndex: eventIndex)
    return [(descriptorArea, counts.descriptor), (driverArea, counts.driver), (deviceArea, counts.device)].compactMap {
      area, count in
      let (last, overflow) = area.rawValue.addingReportingOverflow(UInt64(max(1, count) - 1))
      return overflow ? nil : area.rawValue...last
    }
  }
}

/// How far a queue has come: what a transport saves when it stops and gives back when it resumes.
public struct QueueState: Hashable, Sendable {
  /// Split: the available index to be read next. Packed: the slot of the descriptor to be read next.
  public var available: UInt16
  /// Packed: the wrap counter that goes with ``available``.
  public var availableWrap: Bool
  /// Split: the used index to be written next; nil when only the ring's own memory knows. Packed: the slot to be
  /// written next.
  public var used: UInt16?
  /// Packed: the wrap counter that goes with ``used``.
  public var usedWrap: Bool

  /// A position; without arguments that of a queue never run.
  public init(available: UInt16 = 0, availableWrap: Bool = true, used: UInt16? = 0, usedWrap: Bool = true) {
    self.available = available
    self.availableWrap = availableWrap
    self.used = used
    self.usedWrap = usedWrap
  }

  /// A queue never run.
  public static var initial: Self { Self() }
}

/// The driver broke a rule of the ring: the device needs a reset (§2.1.2). Nothing that only one request did wrong.
public enum QueueError: Error, Hashable, Sendable {
  /// A ring area cannot be reached.
  case ring(DMAFault)
  /// Not a size that a queue of its format may have.
  case size(UInt16)
  /// An area is not aligned as its format wants.
  case misaligned(DMAAddress)
  /// The available index ran further ahead than the ring is long.
  case availableIndex(UInt16, expected: UInt16)
  /// More is available than a ring of this size can hold in addition to the chains in flight.
  case tooManyAvailable(UInt16)
  /// A head or next field names no descriptor.
  case descriptorIndex(UInt16)
  /// More descriptors than a chain may have: a loop, perhaps.
  case chainTooLong
  /// More than 2^32 bytes in a chain.
  case chainTooLarge
  /// A device-readable descriptor after a device-writable one.
  case readableAfterWritable
  /// An indirect table that is empty, not a multiple of 16 bytes, too long, nested, followed by another descriptor, or
  /// not negotiated.
  case indirectTable
  /// A packed ring's buffer ID that is not below the queue's size, where in-flight tracking needs it to be.
  case bufferID(UInt16)
  /// The device gave up: its own reason.
  case device(String)
}
