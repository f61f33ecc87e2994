public import DMA

/// Device addresses are guest-physical ones: there is no IOMMU, or the device bypasses it.
public final class DirectMapper: DMAMapper {
  private let pages: GuestPages

  /// - Parameter pages: where coherent memory comes from.
  public init(_ pages: GuestPages) { self.pages = pages }

  public var memory: GuestMemory { pages.memory }
  public var maxMappingSize: UInt64 { .max }

  public func allocateRange(_ count: UInt64, alignment: UInt64) throws(DMAError) -> MappedRange {
    let guest = try pages.allocate(count, alignment: alignment)
    return MappedRange(
      address: DMAAddress(guest.rawValue), guest: guest, count: count, direction: .bidirectional, isCoherent: true)
  }

  public func mapRange(_ guest: GuestAddress, count: UInt64, _ direction: DMADirection) throws(DMAError) -> MappedRange
  {
    try MappedRange.check(guest, count)
    return MappedRange(address: DMAAddress(guest.rawValue), guest: guest, count: count, direction: direction)
  }

  public func unmapRange(_ range: MappedRange) throws(DMAError) {
    if range.isCoherent { pages.free(range.guest, byteCount: range.count) }
  }

  public func synchronizeForDevice(_ range: MappedRange, at offset: UInt64, count: UInt64) {}
  public func synchronizeForDriver(_ range: MappedRange, at offset: UInt64, count: UInt64) {}
}
