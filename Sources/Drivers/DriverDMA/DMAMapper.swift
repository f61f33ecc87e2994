public import DMA

/// Which side writes a buffer while it is mapped (§2.6: a descriptor's direction is the mapping's).
@frozen public enum DMADirection: Hashable, Sendable {
  /// The driver wrote it, the device reads it.
  case toDevice
  /// The device writes it.
  case fromDevice
  /// Either may write: rings, and nothing else that a virtio driver has.
  case bidirectional

  /// The permissions that the device needs, and no more.
  @inlinable public var permissions: DMAPermissions {
    switch self {
    case .toDevice: .read
    case .fromDevice: .write
    case .bidirectional: .readWrite
    }
  }
  /// Whether the device may write.
  @inlinable public var comesBack: Bool { self != .toDevice }
}

/// Why memory could not be handed to a device, or taken back.
public enum DMAError: Error, Hashable, Sendable {
  /// No bytes, an alignment that is no power of two, or a range that wraps around the end of an address space.
  case range(GuestAddress, count: UInt64)
  /// Longer than the mapper can take in one piece: see ``DMAMapper/maxMappingSize``.
  case tooLarge(UInt64, maximum: UInt64)
  /// No guest memory is left for this many bytes.
  case outOfMemory(UInt64)
  /// No device addresses are left for this many bytes.
  case outOfAddresses(UInt64)
  /// The pool shared with the device has no room for this many bytes now: complete requests first.
  case outOfSlots(UInt64)
  /// The grant table has no room for this many pages now.
  case outOfGrants(UInt64)
  /// The IOMMU refused to make or undo a mapping at this address.
  case iommu(DMAAddress)
  /// Guest memory is missing there.
  case missing(GuestAddress)
  /// The device can name 2^`bits` addresses, and the mapper needs more (R180).
  case addressBits(Int, needed: Int)
  /// A page was still in use by the other side when it was to be taken back: the device is not to be trusted any more
  /// (R180).
  case stillInUse(DMAAddress)
  /// The mapping is not one of the mapper's, or not any more.
  case notMapped(DMAAddress)
  /// A buffer of a premapped pool was mapped for the other direction.
  case direction(GuestAddress)
  /// An earlier error made the mapper useless; only a new one helps.
  case broken
}

/// Memory as both sides name it: what a mapper gives for a map and wants back for an unmap.
@frozen public struct MappedRange: Hashable, Sendable {
  /// The device address.
  public var address: DMAAddress
  /// Where the driver's own bytes are.
  public var guest: GuestAddress
  /// Bytes, at least 1.
  public var count: UInt64
  /// The side that writes.
  public var direction: DMADirection
  /// From ``DMAMapper/allocateRange(_:alignment:)``: both sides see the same bytes, and nothing is to be synchronised.
  public var isCoherent: Bool

  /// A range that a mapper has made.
  @inlinable public init(
    address: DMAAddress, guest: GuestAddress, count: UInt64, direction: DMADirection, isCoherent: Bool = false
  ) {
    self.address = address
    self.guest = guest
    self.count = count
    self.direction = direction
    self.isCoherent = isCoherent
  }
}

/// How a platform lets devices reach memory. A driver's thread uses it; no two at once.
///
/// These functions work with bare ranges, because a driver keeps those of its requests in a table of its own and holds
/// the mapper once. For anything else use ``DMAMapping``, which undoes itself.
public protocol DMAMapper: AnyObject {
  /// The memory that ranges are in.
  var memory: GuestMemory { get }
  /// The most bytes that ``mapRange(_:count:_:)`` takes in one piece, at least 1, wherever they start (R176).
  var maxMappingSize: UInt64 { get }
  /// New memory that both sides see at once, zeroed: for rings.
  ///
  /// - Parameter alignment: of both addresses; a power of two.
  func allocateRange(_ count: UInt64, alignment: UInt64) throws(DMAError) -> MappedRange
  /// Lets the device reach `count` bytes of the driver's. Until the range is unmapped the driver leaves them alone, or
  /// synchronises.
  func mapRange(_ guest: GuestAddress, count: UInt64, _ direction: DMADirection) throws(DMAError) -> MappedRange
  /// Ends what one of the above began; what the device wrote is in the driver's bytes afterwards. The device must be
  /// done with it (R179). After any error the range is gone, or is never used again.
  func unmapRange(_ range: MappedRange) throws(DMAError)
  /// Shows the device what the driver wrote to a part of a mapped range; where only the device writes, these bytes come
  /// back if it does not.
  func synchronizeForDevice(_ range: MappedRange, at offset: UInt64, count: UInt64)
  /// Shows the driver what the device wrote to a part of a mapped range. Nothing happens where the device may not
  /// write.
  func synchronizeForDriver(_ range: MappedRange, at offset: UInt64, count: UInt64)
}

/// A mapping that ends exactly once: when its value ends, or earlier by ``unmap()``.
public struct DMAMapping: ~Copyable {
  /// What is mapped, and where.
  public let range: MappedRange
  private let mapper: any DMAMapper
  private var isMapped = true

  /// Maps `count` bytes of the driver's.
  public init(
    _ guest: GuestAddress, count: UInt64, _ direction: DMADirection, by mapper: any DMAMapper
  ) throws(DMAError) {
    range = try mapper.mapRange(guest, count: count, direction)
    self.mapper = mapper
  }

  /// Allocates coherent memory.
  public init(allocating count: UInt64, alignment: UInt64 = 4096, by mapper: any DMAMapper) throws(DMAError) {
    range = try mapper.allocateRange(count, alignment: alignment)
    self.mapper = mapper
  }

  deinit {
    // To see an error, call unmap explicitly; mappers remember their own.
    if isMapped { try? mapper.unmapRange(range) }
  }

  /// The device address.
  public var address: DMAAddress { range.address }
  /// Where the driver's bytes are.
  public var guest: GuestAddress { range.guest }
  /// Bytes.
  public var count: UInt64 { range.count }

  /// Ends the mapping.
  public consuming func unmap() throws(DMAError) {
    isMapped = false
    try mapper.unmapRange(range)
  }

  /// Leaves the mapping as it is for ever: a device that does not complete a reset may still use it (R179).
  public consuming func abandon() { isMapped = false }

  /// Shows the device what the driver wrote.
  public func synchronizeForDevice(at offset: UInt64, count: UInt64) {
    mapper.synchronizeForDevice(range, at: offset, count: count)
  }
  /// Shows the driver what the device wrote.
  public func synchronizeForDriver(at offset: UInt64, count: UInt64) {
    mapper.synchronizeForDriver(range, at: offset, count: count)
  }
}

extension MappedRange {
  /// Whether a part lies inside.
  func contains(_ offset: UInt64, _ count: UInt64) -> Bool { offset <= self.count && count <= self.count - offset }

  /// Checks what ``DMAMapper/mapRange(_:count:_:)`` was given.
  static func check(_ guest: GuestAddress, _ count: UInt64) throws(DMAError) {
    guard count > 0, guest.rawValue <= UInt64.max - (count - 1) else { throw .range(guest, count: count) }
  }
}
