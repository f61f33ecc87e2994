public import DMA
public import IOMMUInterface
import Synchronization

/// The translation control entries of a PPC64 host bridge (PAPR, "TCE tables"): a window of device addresses, an entry
/// a page, which the guest fills with hypercalls. Everything behind the bridge shares it, and outside the window there
/// is nothing.
///
/// Entries are put and taken by the guest's processors; a call returns when no device uses what it replaced.
public final class TCETable: IOMMU {
  /// Why a hypercall failed.
  public enum HypercallError: Error, Hashable, Sendable {
    /// H_PARAMETER: an address outside the window, or between pages.
    case parameter
  }
  /// Where the window begins.
  public let start: DMAAddress
  /// Bytes of a page, a power of two and at least 4096.
  public let pageSize: UInt64
  private let entries: Mutex<[UInt64]>
  private let endpoints = BridgeEndpoints()

  /// A window of `pages` pages, all empty.
  ///
  /// - Parameters:
  ///   - pages: at least 1; the window must not wrap around the end of the address space.
  ///   - pageShift: 12...34.
  public init(start: DMAAddress = DMAAddress(0), pages: Int, pageShift: Int = 12) {
    precondition(pages > 0 && (12...34).contains(pageShift))
    self.start = start
    pageSize = 1 << UInt64(pageShift)
    precondition(
      start.rawValue & (pageSize - 1) == 0
        && !start.rawValue.addingReportingOverflow(pageSize * UInt64(pages) - 1).overflow)
    entries = Mutex([UInt64](repeating: 0, count: pages))
  }

  /// Accesses refused, of all endpoints. The bridge would freeze the slot; here the refusal is the device's to handle.
  public var faults: UInt64 { endpoints.faults }

  public func adopt(_ endpoint: EndpointSpace) { endpoints.adopt(endpoint, by: self) }

  public func release(_ endpoint: EndpointSpace) { endpoints.release(endpoint) }

  /// H_PUT_TCE: the entry of one page. Bit 0 lets devices read, bit 1 lets them write, the page's address is above; 0
  /// takes it away.
  public func put(_ address: DMAAddress, _ entry: UInt64) throws(HypercallError) { try put(address, [entry]) }

  /// H_PUT_TCE_INDIRECT: the entries of pages that follow one another.
  public func put(_ address: DMAAddress, _ entries: [UInt64]) throws(HypercallError) {
    try replace(address, count: entries.count) { entries[$0] }
  }

  /// H_STUFF_TCE: the same entry for `count` pages.
  public func stuff(_ address: DMAAddress, _ entry: UInt64, count: Int) throws(HypercallError) {
    try replace(address, count: count) { _ in entry }
  }

  private func replace(_ address: DMAAddress, count: Int, _ entry: (Int) -> UInt64) throws(HypercallError) {
    let offset = address.rawValue &- start.rawValue
    let index = offset / pageSize
    // Checked without adding: the guest chose every one of these numbers.
    let narrowed: Bool? = entries.withLock { entries in
      let pages = UInt64(entries.count)
      guard offset & (pageSize - 1) == 0, count >= 0, index < pages, UInt64(count) <= pages - index else { return nil }
      var narrows = false
      for i in 0..<count {
        let at = Int(index) + i
        narrows = narrows || entries[at] & 3 != 0
        entries[at] = entry(i)
      }
      return narrows
    }
    guard let narrowed else { throw .parameter }
    if narrowed {
      endpoints.invalidate(from: address.rawValue, through: address.rawValue + pageSize * UInt64(count) - 1)
    }
  }
}

extension TCETable: AddressTranslation {
  public func lookUp(
    _ address: DMAAddress, for access: DMAAccess, by requester: RequesterID
  ) throws(DMAFault) -> GuestRun {
    let index = (address.rawValue &- start.rawValue) / pageSize
    let entry = entries.withLock { entries in index < UInt64(entries.count) ? entries[Int(index)] : 0 }
    let permissions = DMAPermissions(rawValue: UInt8(truncatingIfNeeded: entry & 3))
    guard !permissions.isEmpty else { throw DMAFault(address: address, access: access, reason: .unmapped) }
    guard permissions.allows(access) else { throw DMAFault(address: address, access: access, reason: .permission) }
    return GuestRun(page: pageSize, around: address.rawValue, at: entry & ~0xFFF, permissions: permissions)
  }

  public func report(_ fault: DMAFault, by requester: RequesterID) { endpoints.countFault() }
}
