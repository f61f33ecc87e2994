public import DMA
public import DriverDMA

/// The hypercalls with which a PPC64 guest fills its TCE window. They return when no device uses what they replaced;
/// false: refused.
public protocol TCEHypercalls: AnyObject {
  /// H_PUT_TCE: the entry of one page.
  func putTCE(_ address: DMAAddress, _ entry: UInt64) -> Bool
  /// H_PUT_TCE_INDIRECT: the entries of pages that follow one another, 512 at most.
  func putTCEs(_ address: DMAAddress, _ entries: [UInt64]) -> Bool
  /// H_STUFF_TCE: the same entry for `count` pages.
  func stuffTCE(_ address: DMAAddress, _ entry: UInt64, count: Int) -> Bool
}

/// The driver of a TCE window: the one domain of everything behind its host bridge. Its unmaps are strict: the
/// hypercall is.
public final class TCEDriver: IOMMUDomain {
  private let hypercalls: any TCEHypercalls
  private let start: UInt64
  private let pages: UInt64
  /// A page, in bytes: what an `IOVAAllocator` for the window takes as its granule.
  public let pageSize: UInt64
  /// A bit for each page that is mapped: the hypercall would replace one without a word.
  private var mapped: [UInt64]
  private var entries: [UInt64] = []

  /// Takes the window over, and empties it.
  ///
  /// - Parameters:
  ///   - pages: at least 1, and no further than the addresses go.
  ///   - pageSize: a power of two, 4096 at least.
  public init(_ hypercalls: any TCEHypercalls, start: DMAAddress, pages: Int, pageSize: UInt64 = 4096) throws(DMAError)
  {
    precondition(pages > 0 && pageSize >= 4096 && pageSize & (pageSize - 1) == 0, "a window as documented")
    self.hypercalls = hypercalls
    self.start = start.rawValue
    self.pages = UInt64(pages)
    self.pageSize = pageSize
    mapped = [UInt64](repeating: 0, count: (pages + 63) / 64)
    entries.reserveCapacity(512)
    guard hypercalls.stuffTCE(start, 0, count: pages) else { throw .iommu(start) }
  }

  /// The device addresses of the window.
  public var aperture: ClosedRange<UInt64> { start...(start + (pages * pageSize - 1)) }

  /// The first page and how many, of a range inside the window.
  private func check(_ address: DMAAddress, _ count: UInt64) throws(DMAError) -> Range<UInt64> {
    let offset = address.rawValue &- start
    guard (offset | count) & (pageSize - 1) == 0, count > 0, offset / pageSize < pages,
      count / pageSize <= pages - offset / pageSize
    else {
      throw .iommu(address)
    }
    return offset / pageSize..<offset / pageSize + count / pageSize
  }

  private func isMapped(_ page: UInt64) -> Bool { mapped[Int(page / 64)] >> (page % 64) & 1 != 0 }

  private func set(_ range: Range<UInt64>, _ isMapped: Bool) {
    for page in range {
      if isMapped { mapped[Int(page / 64)] |= 1 << (page % 64) } else { mapped[Int(page / 64)] &= ~(1 << (page % 64)) }
    }
  }

  public func map(
    _ address: DMAAddress, to guest: GuestAddress, count: UInt64, permissions: DMAPermissions
  ) throws(DMAError) {
    let range = try check(address, count)
    guard guest.rawValue & (pageSize - 1) == 0, guest.rawValue <= .max - (count - 1), !permissions.isEmpty else {
      throw .range(guest, count: count)
    }
    guard !range.contains(where: isMapped) else { throw .iommu(address) }
    var done: UInt64 = 0
    while done < count {
      let some = min((count - done) / pageSize, 512)
      guard put(DMAAddress(address.rawValue + done), guest.rawValue + done | UInt64(permissions.rawValue & 3), some)
      else {
        // No caller would own half of a mapping.
        if done > 0 { _ = hypercalls.stuffTCE(address, 0, count: Int(done / pageSize)) }
        throw .iommu(address)
      }
      done += some * pageSize
    }
    set(range, true)
  }

  private func put(_ address: DMAAddress, _ entry: UInt64, _ count: UInt64) -> Bool {
    if count == 1 { return hypercalls.putTCE(address, entry) }
    entries.removeAll(keepingCapacity: true)
    for page in 0..<count { entries.append(entry + page * pageSize) }
    return hypercalls.putTCEs(address, entries)
  }

  public func unmap(_ address: DMAAddress, count: UInt64) throws(DMAError) {
    let range = try check(address, count)
    guard range.allSatisfy(isMapped), hypercalls.stuffTCE(address, 0, count: range.count) else { throw .iommu(address) }
    set(range, false)
  }
}
