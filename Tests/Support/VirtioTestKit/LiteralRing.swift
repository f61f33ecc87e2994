public import DMA
public import Virtio

/// A descriptor as a test wants it written: not necessarily one that makes sense.
public struct LiteralDescriptor: Hashable, Sendable {
  public var address: DMAAddress
  public var length: UInt32
  public var isWritable: Bool

  public init(_ address: DMAAddress, _ length: UInt32, writable: Bool = false) {
    self.address = address
    self.length = length
    isWritable = writable
  }
}

/// What the device wrote into the used ring, or over a packed descriptor.
public struct LiteralUsed: Hashable, Sendable {
  public var id: UInt32
  public var length: UInt32

  public init(id: UInt32, length: UInt32) {
    self.id = id
    self.length = length
  }
}

/// A driver's side of a ring that writes the bytes of the specification's tables and nothing else: the referee between
/// the device side and the driver side of this package, with which it shares no code.
public protocol LiteralRing: AnyObject {
  var memory: LiteralMemory { get }
  var layout: QueueLayout { get }
  /// Descriptors that no chain occupies.
  var free: Int { get }
  /// Writes a chain: as descriptors of the ring, or into an indirect table at `table`. Returns its ID. The device sees
  /// it after ``publish()``.
  func post(_ chain: [LiteralDescriptor], table: DMAAddress?) -> UInt16
  /// Makes what was posted available. Whether the device asked to be notified of that, by the rules for this format.
  @discardableResult func publish() -> Bool
  /// What the device gave back since the last question, in its order.
  func takeUsed() -> [LiteralUsed]
  /// No used buffer notifications (a hint only).
  func refuseCalls()
  /// A used buffer notification for anything used from here on.
  func wantCalls()
  /// With an event index: a notification when the buffer (split) or slot (packed) `distance` after the next is used.
  func wantCall(after distance: UInt16)
}

extension LiteralRing {
  @discardableResult public func post(_ chain: [LiteralDescriptor]) -> UInt16 { post(chain, table: nil) }
}

/// Where a test puts the areas of a ring: one after the other from `base`, each on pages of its own.
public func literalLayout(size: UInt16, packed: Bool, at base: UInt64) -> (layout: QueueLayout, end: UInt64) {
  func pages(_ n: UInt64) -> UInt64 { (n + 4095) / 4096 * 4096 }
  let n = UInt64(size)
  // The event fields always have room, whether they are negotiated or not.
  let descriptors = pages(16 * n)
  let driver = pages(packed ? 4 : 6 + 2 * n)
  let device = pages(packed ? 4 : 6 + 8 * n)
  let layout = QueueLayout(
    size: size, descriptorArea: DMAAddress(base), driverArea: DMAAddress(base + descriptors),
    deviceArea: DMAAddress(base + descriptors + driver))
  return (layout, base + descriptors + driver + device)
}

/// Either format. A split ring's indices, or a packed ring's slot, may stand where an earlier use left them.
public func makeLiteralRing(
  _ layout: QueueLayout, features: Features, startingAt start: UInt16 = 0, in memory: LiteralMemory
) -> any LiteralRing {
  let event = features.contains(.eventIndex)
  let order = features.contains(.inOrder)
  return features.contains(.ringPacked)
    ? LiteralPackedRing(layout, eventIndex: event, startingAt: Int(start), in: memory)
    : LiteralSplitRing(layout, eventIndex: event, inOrder: order, startingAt: start, in: memory)
}
