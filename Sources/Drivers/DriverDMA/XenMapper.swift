public import DMA

/// Where a Xen guest's pages really are. One thread uses it.
public protocol MachinePages: AnyObject {
  /// The machine page behind a page of guest memory, both of 4096 bytes; nil where there is none.
  func machinePage(of guestPage: UInt64) -> UInt64?
}

/// Maps for a Xen PV guest, whose physical addresses mean nothing to a device: it gets machine addresses. Pages that
/// follow one another for the guest need not do so in the machine; a buffer of such pages, or one that the device
/// cannot name, goes through a pool that is in one piece (R173, R176).
public final class XenMapper: DMAMapper {
  private let machine: any MachinePages
  private let contiguous: MachineMapper
  private let pool: BounceMapper
  private let poolStart: DMAAddress
  private let poolSize: UInt64
  private let limit: UInt64
  /// Mappings that went through the pool.
  public private(set) var bounced: UInt64 = 0

  /// - Parameters:
  ///   - contiguous: pages that follow one another in the machine too: for coherent memory and the pool.
  ///   - poolSize: bytes of the pool; a whole number of pages.
  ///   - limit: the last machine address that the device can name.
  public init(
    _ machine: any MachinePages, contiguous: GuestPages, poolSize: UInt64, slotsPerMapping: UInt64 = 128,
    limit: UInt64 = .max
  ) throws(DMAError) {
    self.machine = machine
    self.limit = limit
    self.poolSize = poolSize
    self.contiguous = MachineMapper(machine, contiguous, limit: limit)
    pool = try BounceMapper(over: self.contiguous, poolSize: poolSize, slotsPerMapping: slotsPerMapping)
    poolStart = self.contiguous.lastAddress
  }

  public var memory: GuestMemory { contiguous.memory }
  /// What the pool takes in one piece, since any buffer may need it.
  public var maxMappingSize: UInt64 { pool.maxMappingSize }
  /// Slots of the pool that no mapping uses.
  public var freeSlots: UInt64 { pool.freeSlots }

  public func allocateRange(_ count: UInt64, alignment: UInt64) throws(DMAError) -> MappedRange {
    try contiguous.allocateRange(count, alignment: alignment)
  }

  public func mapRange(_ guest: GuestAddress, count: UInt64, _ direction: DMADirection) throws(DMAError) -> MappedRange
  {
    try MappedRange.check(guest, count)
    guard count <= maxMappingSize else { throw .tooLarge(count, maximum: maxMappingSize) }
    if let address = try machine.address(of: guest, count: count), address.rawValue <= limit,
      count - 1 <= limit - address.rawValue
    {
      return MappedRange(address: address, guest: guest, count: count, direction: direction)
    }
    bounced &+= 1
    return try pool.mapRange(guest, count: count, direction)
  }

  private func isPooled(_ range: MappedRange) -> Bool {
    !range.isCoherent && range.address.rawValue &- poolStart.rawValue < poolSize
  }

  public func unmapRange(_ range: MappedRange) throws(DMAError) {
    if isPooled(range) { try pool.unmapRange(range) } else if range.isCoherent { try contiguous.unmapRange(range) }
  }

  public func synchronizeForDevice(_ range: MappedRange, at offset: UInt64, count: UInt64) {
    if isPooled(range) { pool.synchronizeForDevice(range, at: offset, count: count) }
  }

  public func synchronizeForDriver(_ range: MappedRange, at offset: UInt64, count: UInt64) {
    if isPooled(range) { pool.synchronizeForDriver(range, at: offset, count: count) }
  }
}

/// Memory that is in one piece in the machine, by its machine address.
private final class MachineMapper: DMAMapper {
  private let machine: any MachinePages
  private let pages: GuestPages
  private let limit: UInt64
  /// Of the last allocation.
  private(set) var lastAddress = DMAAddress(0)

  init(_ machine: any MachinePages, _ pages: GuestPages, limit: UInt64) {
    self.machine = machine
    self.pages = pages
    self.limit = limit
  }

  var memory: GuestMemory { pages.memory }
  var maxMappingSize: UInt64 { .max }

  func allocateRange(_ count: UInt64, alignment: UInt64) throws(DMAError) -> MappedRange {
    let guest = try pages.allocate(count, alignment: alignment)
    do throws(DMAError) {
      guard let address = try machine.address(of: guest, count: count), address.rawValue & (alignment - 1) == 0,
        address.rawValue <= limit, count - 1 <= limit - address.rawValue
      else { throw .range(guest, count: count) }
      lastAddress = address
      return MappedRange(address: address, guest: guest, count: count, direction: .bidirectional, isCoherent: true)
    } catch {
      pages.free(guest, byteCount: count)
      throw error
    }
  }

  func mapRange(_ guest: GuestAddress, count: UInt64, _ direction: DMADirection) throws(DMAError) -> MappedRange {
    throw .range(guest, count: count)
  }

  func unmapRange(_ range: MappedRange) throws(DMAError) { pages.free(range.guest, byteCount: range.count) }

  func synchronizeForDevice(_ range: MappedRange, at offset: UInt64, count: UInt64) {}
  func synchronizeForDriver(_ range: MappedRange, at offset: UInt64, count: UInt64) {}
}

extension MachinePages {
  /// The machine address of a range of the guest's; nil if it is in more than one piece there.
  fileprivate func address(of guest: GuestAddress, count: UInt64) throws(DMAError) -> DMAAddress? {
    let (first, last) = (guest.rawValue >> 12, (guest.rawValue + (count - 1)) >> 12)
    guard let start = machinePage(of: first), start < 1 << 52 else { throw .missing(guest) }
    var isWhole = true
    for page in first..<last + 1 {
      guard let machine = machinePage(of: page) else { throw .missing(GuestAddress(page << 12)) }
      isWhole = isWhole && machine == start &+ (page - first)
    }
    return isWhole ? DMAAddress(start << 12 | guest.rawValue & 4095) : nil
  }
}
