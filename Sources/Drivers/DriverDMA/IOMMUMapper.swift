public import DMA

/// The driver of an IOMMU, for one domain: what a mapper needs of it. One thread uses it.
public protocol IOMMUDomain: AnyObject {
  /// Makes `count` bytes of guest memory visible at `address`; all three are multiples of the granule.
  func map(_ address: DMAAddress, to guest: GuestAddress, count: UInt64, permissions: DMAPermissions) throws(DMAError)
  /// Takes back what one ``map(_:to:count:permissions:)`` made visible. The device may go on using it until
  /// ``flush()``.
  func unmap(_ address: DMAAddress, count: UInt64) throws(DMAError)
  /// Returns when nothing unmapped before can be used any more.
  func flush() throws(DMAError)
}

extension IOMMUDomain {
  /// Nothing to do where ``unmap(_:count:)`` returns no earlier than that.
  public func flush() throws(DMAError) {}
}

/// Maps through an IOMMU: each buffer gets device addresses for as long as it is mapped.
public final class IOMMUMapper: DMAMapper {
  /// When the IOMMU forgets what was unmapped.
  public enum Flush: Hashable, Sendable {
    /// Before the unmap returns: nothing can be reached for longer than its driver allows.
    case strict
    /// When this many unmaps have come together; until then the device may still reach them, and their addresses are
    /// not given out again.
    case deferred(batch: Int)
  }
  private struct Waiting {
    var address: DMAAddress
    var count: UInt64
    /// Coherent memory that goes with it, or nil.
    var guest: GuestAddress?
  }

  private let iommu: any IOMMUDomain
  private let pages: GuestPages
  private let addresses: IOVAAllocator
  private let user: Int
  private let granule: UInt64
  private let batch: Int
  private var waiting: [Waiting] = []
  /// Bytes of device addresses whose invalidation the IOMMU refused: they are never used again.
  public private(set) var lostBytes: UInt64 = 0

  /// - Parameters:
  ///   - addresses: the domain's; several mappers may share it.
  ///   - limit: the last address that the device can name.
  public init(
    _ iommu: any IOMMUDomain, addresses: IOVAAllocator, pages: GuestPages, limit: UInt64 = .max, flush: Flush = .strict
  ) {
    self.iommu = iommu
    self.pages = pages
    self.addresses = addresses
    user = addresses.addUser(limit: limit)
    granule = addresses.granule
    switch flush {
    case .strict: batch = 1
    case .deferred(let n): batch = max(n, 1)
    }
    waiting.reserveCapacity(batch)
  }

  public var memory: GuestMemory { pages.memory }
  public var maxMappingSize: UInt64 { 1 << 40 }
  /// Allocations of addresses that the cache answered, and all.
  public var cacheCounts: (hits: UInt64, all: UInt64) { addresses.counts(of: user) }
  /// Unmaps that wait for the flush.
  public var waitingCount: Int { waiting.count }

  public func allocateRange(_ count: UInt64, alignment: UInt64) throws(DMAError) -> MappedRange {
    // Whole granules: the device reaches the rest of the last one too.
    let size = count <= maxMappingSize ? (count + (granule - 1)) & ~(granule - 1) : count
    let guest = try pages.allocate(size, alignment: max(alignment, granule))
    do throws(DMAError) {
      var range = try map(guest, count, .bidirectional, alignment)
      range.isCoherent = true
      return range
    } catch {
      pages.free(guest, byteCount: size)
      throw error
    }
  }

  public func mapRange(_ guest: GuestAddress, count: UInt64, _ direction: DMADirection) throws(DMAError) -> MappedRange
  {
    try map(guest, count, direction, 1)
  }

  private func map(
    _ guest: GuestAddress, _ count: UInt64, _ direction: DMADirection, _ alignment: UInt64
  ) throws(DMAError) -> MappedRange {
    try MappedRange.check(guest, count)
    guard count <= maxMappingSize else { throw .tooLarge(count, maximum: maxMappingSize) }
    let lead = guest.rawValue & (granule - 1)
    let size = (lead + count + (granule - 1)) & ~(granule - 1)
    let start: DMAAddress
    do throws(DMAError) {
      start = try addresses.allocate(size, alignment: alignment, user: user)
    } catch {
      // Addresses that wait for a flush are free after it.
      guard !waiting.isEmpty else { throw error }
      try flush()
      start = try addresses.allocate(size, alignment: alignment, user: user)
    }
    do throws(DMAError) {
      try iommu.map(start, to: GuestAddress(guest.rawValue - lead), count: size, permissions: direction.permissions)
    } catch {
      addresses.free(start, byteCount: size, user: user)
      throw error
    }
    return MappedRange(address: DMAAddress(start.rawValue + lead), guest: guest, count: count, direction: direction)
  }

  public func unmapRange(_ range: MappedRange) throws(DMAError) {
    let lead = range.address.rawValue & (granule - 1)
    let start = DMAAddress(range.address.rawValue - lead)
    let size = (lead + range.count + (granule - 1)) & ~(granule - 1)
    do throws(DMAError) {
      try iommu.unmap(start, count: size)
    } catch {
      // The device may reach the memory for as long as the machine runs: neither the addresses nor coherent memory come
      // back.
      lostBytes &+= size
      throw error
    }
    waiting.append(Waiting(address: start, count: size, guest: range.isCoherent ? range.guest : nil))
    if waiting.count >= batch { try flush() }
  }

  /// Makes the IOMMU forget what waits; the addresses can be given out again.
  public func flush() throws(DMAError) {
    guard !waiting.isEmpty else { return }
    do throws(DMAError) {
      try iommu.flush()
    } catch {
      for one in waiting { lostBytes &+= one.count }
      waiting.removeAll(keepingCapacity: true)
      throw error
    }
    for one in waiting {
      addresses.free(one.address, byteCount: one.count, user: user)
      if let guest = one.guest { pages.free(guest, byteCount: one.count) }
    }
    waiting.removeAll(keepingCapacity: true)
  }

  public func synchronizeForDevice(_ range: MappedRange, at offset: UInt64, count: UInt64) {}
  public func synchronizeForDriver(_ range: MappedRange, at offset: UInt64, count: UInt64) {}
}
