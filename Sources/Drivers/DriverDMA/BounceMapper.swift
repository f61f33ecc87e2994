public import DMA

/// Copies through a pool that the device can reach, because it can reach nothing else: a confidential guest, or a
/// device with short addresses behind no IOMMU.
///
/// The pool is cut into slots; a mapping takes as many as it needs, next to each other. A pool that is used up is an
/// error at once: requests that complete give slots back.
public final class BounceMapper: DMAMapper {
  private let pool: DMAMapping
  private var free = FreeRanges()
  /// A slot, in bytes.
  public let slotSize: UInt64
  /// Slots in the pool.
  public let slotCount: UInt64
  public let memory: GuestMemory
  public let maxMappingSize: UInt64

  /// - Parameters:
  ///   - shared: gives the pool, memory that the device reaches: a direct mapper over the shared part of a confidential
  ///     guest's memory, or an IOMMU's.
  ///   - poolSize: bytes.
  ///   - slotSize: bytes; a power of two, 4096 at most.
  ///   - slotsPerMapping: the most that a mapping takes.
  public init(
    over shared: any DMAMapper, poolSize: UInt64, slotSize: UInt64 = 2048, slotsPerMapping: UInt64 = 128
  ) throws(DMAError) {
    precondition(
      slotSize > 0 && slotSize <= 4096 && slotSize & (slotSize - 1) == 0 && slotsPerMapping > 0, "slots as documented")
    guard poolSize >= slotSize else { throw .outOfSlots(slotSize) }
    pool = try DMAMapping(allocating: poolSize, alignment: 4096, by: shared)
    memory = shared.memory
    self.slotSize = slotSize
    slotCount = poolSize / slotSize
    maxMappingSize = min(slotsPerMapping, slotCount) * slotSize
    _ = free.insert(0, through: slotCount - 1)
  }

  /// Slots that no mapping uses.
  public var freeSlots: UInt64 { free.count }

  private func slots(_ count: UInt64) -> UInt64 { (count - 1) / slotSize + 1 }

  private func take(_ count: UInt64, alignment: UInt64) throws(DMAError) -> UInt64 {
    guard let slot = free.takeLowest(slots(count), alignment: max(alignment / slotSize, 1)) else {
      throw .outOfSlots(count)
    }
    return slot
  }

  public func allocateRange(_ count: UInt64, alignment: UInt64) throws(DMAError) -> MappedRange {
    // The pool itself starts at a multiple of 4096 and no more.
    guard count > 0, alignment > 0, alignment <= 4096, alignment & (alignment - 1) == 0 else {
      throw .range(GuestAddress(0), count: count)
    }
    let slot = try take(count, alignment: alignment)
    let guest = GuestAddress(pool.guest.rawValue + slot * slotSize)
    guard memory.zero(at: guest, count: count) else { throw .missing(guest) }
    return MappedRange(
      address: DMAAddress(pool.address.rawValue + slot * slotSize), guest: guest, count: count,
      direction: .bidirectional,
      isCoherent: true)
  }

  public func mapRange(_ guest: GuestAddress, count: UInt64, _ direction: DMADirection) throws(DMAError) -> MappedRange
  {
    try MappedRange.check(guest, count)
    guard count <= maxMappingSize else { throw .tooLarge(count, maximum: maxMappingSize) }
    let slot = try take(count, alignment: 1)
    let range = MappedRange(
      address: DMAAddress(pool.address.rawValue + slot * slotSize), guest: guest, count: count, direction: direction)
    // In every direction: bytes that the device does not write come back as they were, and not as another request left
    // them.
    guard memory.move(count, from: guest, to: place(range, 0)) else {
      _ = free.insert(slot, through: slot + (slots(count) - 1))
      throw .missing(guest)
    }
    return range
  }

  /// Where the pool has a byte of a range, as the driver sees it.
  private func place(_ range: MappedRange, _ offset: UInt64) -> GuestAddress {
    GuestAddress(pool.guest.rawValue &+ (range.address.rawValue &- pool.address.rawValue) &+ offset)
  }

  public func unmapRange(_ range: MappedRange) throws(DMAError) {
    let offset = range.address.rawValue &- pool.address.rawValue
    guard range.count > 0, offset < slotCount * slotSize, range.count <= slotCount * slotSize - offset else {
      throw .notMapped(range.address)
    }
    let isWhole =
      range.isCoherent || !range.direction.comesBack || memory.move(range.count, from: place(range, 0), to: range.guest)
    let slot = offset / slotSize
    guard free.insert(slot, through: slot + (slots(range.count) - 1)) else { throw .notMapped(range.address) }
    guard isWhole else { throw .missing(range.guest) }
  }

  public func synchronizeForDevice(_ range: MappedRange, at offset: UInt64, count: UInt64) {
    guard !range.isCoherent, range.contains(offset, count) else { return }
    _ = memory.move(count, from: GuestAddress(range.guest.rawValue + offset), to: place(range, offset))
  }

  public func synchronizeForDriver(_ range: MappedRange, at offset: UInt64, count: UInt64) {
    guard !range.isCoherent, range.direction.comesBack, range.contains(offset, count) else { return }
    _ = memory.move(count, from: place(range, offset), to: GuestAddress(range.guest.rawValue + offset))
  }
}
