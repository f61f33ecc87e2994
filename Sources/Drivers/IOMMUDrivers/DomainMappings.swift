import DMA
import DriverDMA

/// A unit that drops translations on request, by descriptors that are posted and then waited for.
protocol InvalidatingUnit: AnyObject {
  /// Whether it may remember that there was nothing.
  var remembersNothing: Bool { get }
  /// A range of a domain, or the whole domain where the unit cannot name the range.
  ///
  /// - Parameter keepsTables: nothing but pages changed.
  func postPages(of domain: UInt16, from first: UInt64, through last: UInt64, keepsTables: Bool)
  func postDomain(_ domain: UInt16)
  /// The translations of a range that the requesters of a domain cache themselves.
  func postKept(in domain: UInt16, from first: UInt64, through last: UInt64)
  /// Has the unit do what was posted, and waits until it says that it has. False: it did not, or not in time.
  func complete() -> Bool
}

/// Ranges as units name them.
enum PageOrder {
  /// The smallest power of two of pages around a range that starts at a multiple of itself: 2^order pages.
  static func around(_ first: UInt64, _ last: UInt64) -> UInt64 {
    UInt64(64 - ((first ^ last) >> 12).leadingZeroBitCount)
  }

  /// The word that says so many pages by the lowest clear bit of the address, as ATS does: bit 0 says that there is
  /// more than one.
  static func word(_ first: UInt64, _ last: UInt64) -> UInt64 {
    let order = around(first, last)
    if order == 0 { return first & ~4095 }
    if order >= 52 { return 0x7FFF_FFFF_FFFF_F001 }
    return first & ~(4096 << order - 1) | (4096 << (order - 1) - 4096) | 1
  }
}

/// What is mapped in one domain, and what was unmapped and the unit may remember still.
///
/// Of one range that waits the unit forgets the pages, of several the whole domain.
struct DomainMappings<Format: PageTableFormat>: ~Copyable {
  let number: UInt16
  private(set) var tables: PageTables<Format>
  private let lastAddress: UInt64
  private let memory: TableMemory
  private(set) var hasEnded = false
  private var waiting = 0
  private var first: UInt64 = .max
  private var last: UInt64 = 0

  init(_ number: UInt16, in memory: TableMemory, levels: Int, largest: Int, lastAddress: UInt64) throws(DMAError) {
    self.number = number
    self.memory = memory
    self.lastAddress = lastAddress
    tables = try PageTables(in: memory, levels: levels, largest: largest)
  }

  /// Gives the memory back; false if that was done before.
  mutating func end() -> Bool {
    guard !hasEnded else { return false }
    hasEnded = true
    tables.freeAll()
    return true
  }

  private func check(_ address: DMAAddress, _ count: UInt64) throws(DMAError) {
    guard !hasEnded, (address.rawValue | count) & 4095 == 0, count > 0, address.rawValue <= lastAddress,
      count - 1 <= lastAddress - address.rawValue
    else { throw .iommu(address) }
  }

  private mutating func wait(_ address: DMAAddress, _ count: UInt64) {
    waiting += 1
    first = min(first, address.rawValue)
    last = max(last, address.rawValue + (count - 1))
  }

  mutating func map(
    _ address: DMAAddress, to guest: GuestAddress, count: UInt64, permissions: DMAPermissions,
    by unit: any InvalidatingUnit
  ) throws(DMAError) {
    try check(address, count)
    guard guest.rawValue & 4095 == 0, guest.rawValue < 1 << 52, count <= (1 << 52) - guest.rawValue,
      !permissions.isEmpty
    else {
      throw .range(guest, count: count)
    }
    let tablesChanged: Bool
    do throws(DMAError) {
      tablesChanged = try tables.map(address.rawValue, to: guest.rawValue, count: count, permissions: permissions)
    } catch {
      // Part of it was visible for a moment.
      wait(address, count)
      try? flush(by: unit)
      throw error
    }
    guard unit.remembersNothing || tables.hasRetired else { return }
    let last = address.rawValue + (count - 1)
    unit.postPages(of: number, from: address.rawValue, through: last, keepsTables: !tablesChanged)
    if tables.hasRetired { unit.postKept(in: number, from: address.rawValue, through: last) }
    guard unit.complete() else {
      try? tables.unmap(address.rawValue, count: count)
      throw .iommu(address)
    }
    tables.freeRetired()
  }

  mutating func unmap(_ address: DMAAddress, count: UInt64) throws(DMAError) {
    try check(address, count)
    try tables.unmap(address.rawValue, count: count)
    wait(address, count)
  }

  mutating func flush(by unit: any InvalidatingUnit) throws(DMAError) {
    guard waiting > 0 else { return }
    if waiting == 1 {
      unit.postPages(of: number, from: first, through: last, keepsTables: !tables.hasRetired)
    } else {
      unit.postDomain(number)
    }
    // After the unit's own: a device could ask it anew meanwhile.
    unit.postKept(in: number, from: first, through: last)
    let start = first
    (waiting, first, last) = (0, .max, 0)
    guard unit.complete() else { throw .iommu(DMAAddress(start)) }
    tables.freeRetired()
  }
}
