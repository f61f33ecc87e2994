public import DMA

/// The pages that a Xen guest lets other domains use, by reference number. One thread uses it.
public protocol GrantTable: AnyObject {
  /// Grants `count` pages from page `first` of guest memory on, and returns the first of as many consecutive
  /// references.
  func grant(_ first: UInt64, count: UInt64, readOnly: Bool) throws(DMAError) -> UInt32
  /// Ends grants. False: the other side still uses one of them, and they all stay.
  func endAccess(_ first: UInt32, count: UInt64) -> Bool
}

/// Maps by granting pages: an address is a reference number with bit 63 set (R180).
public final class GrantMapper: DMAMapper {
  private let table: any GrantTable
  private let pages: GuestPages
  /// A page was still in use when it was to be taken back. Nothing is mapped any more.
  public private(set) var isBroken = false

  /// Marks an address as made of a grant.
  public static var marker: UInt64 { 1 << 63 }

  /// - Parameter addressBits: how many address bits the device has. Grants need all 64.
  public init(_ table: any GrantTable, pages: GuestPages, addressBits: Int = 64) throws(DMAError) {
    guard addressBits >= 64 else { throw .addressBits(addressBits, needed: 64) }
    self.table = table
    self.pages = pages
  }

  public var memory: GuestMemory { pages.memory }
  public var maxMappingSize: UInt64 { 255 * GuestPages.pageSize }

  private func pageCount(_ guest: UInt64, _ count: UInt64) -> UInt64 {
    (guest % GuestPages.pageSize + (count - 1)) / GuestPages.pageSize + 1
  }

  private func grant(_ guest: GuestAddress, _ count: UInt64, _ direction: DMADirection) throws(DMAError) -> MappedRange
  {
    guard !isBroken else { throw .broken }
    let page = GuestPages.pageSize
    let reference = try table.grant(
      guest.rawValue / page, count: pageCount(guest.rawValue, count), readOnly: direction == .toDevice)
    let address = UInt64(reference) * page | guest.rawValue % page | Self.marker
    return MappedRange(address: DMAAddress(address), guest: guest, count: count, direction: direction)
  }

  public func allocateRange(_ count: UInt64, alignment: UInt64) throws(DMAError) -> MappedRange {
    guard !isBroken else { throw .broken }
    // References come in any order: more than a page's alignment cannot be had.
    guard alignment <= GuestPages.pageSize else { throw .range(GuestAddress(0), count: count) }
    let guest = try pages.allocate(count, alignment: alignment)
    do throws(DMAError) {
      var range = try grant(guest, count, .bidirectional)
      range.isCoherent = true
      return range
    } catch {
      pages.free(guest, byteCount: count)
      throw error
    }
  }

  public func mapRange(_ guest: GuestAddress, count: UInt64, _ direction: DMADirection) throws(DMAError) -> MappedRange
  {
    try MappedRange.check(guest, count)
    guard count <= maxMappingSize else { throw .tooLarge(count, maximum: maxMappingSize) }
    return try grant(guest, count, direction)
  }

  public func unmapRange(_ range: MappedRange) throws(DMAError) {
    guard range.address.rawValue & Self.marker != 0 else { throw .notMapped(range.address) }
    let reference = UInt32(truncatingIfNeeded: (range.address.rawValue & ~Self.marker) / GuestPages.pageSize)
    guard table.endAccess(reference, count: pageCount(range.guest.rawValue, range.count)) else {
      isBroken = true
      throw .stillInUse(range.address)
    }
    if range.isCoherent { pages.free(range.guest, byteCount: range.count) }
  }

  public func synchronizeForDevice(_ range: MappedRange, at offset: UInt64, count: UInt64) {}
  public func synchronizeForDriver(_ range: MappedRange, at offset: UInt64, count: UInt64) {}
}
