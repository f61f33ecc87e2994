import DMA
import DriverDMA
import IOMMUInterface

/// An IOMMU whose page tables are a ``Domain``, and that can be told to fail.
final class ModelIOMMU: IOMMUDomain {
  struct Map: Hashable {
    var address: UInt64
    var guest: UInt64
    var count: UInt64
    var permissions: DMAPermissions
  }
  let domain: Domain
  /// What was unmapped stays reachable until the flush, as in an IOMMU's cache.
  let isLazy: Bool
  private(set) var maps: [Map] = []
  private(set) var unmaps = 0
  private(set) var flushes = 0
  private var stale: [(DMAAddress, UInt64)] = []
  /// Maps that still succeed; nil: all.
  var mapsLeft: Int?
  var refusesUnmap = false
  var refusesFlush = false

  init(_ domain: Domain, isLazy: Bool = false) {
    self.domain = domain
    self.isLazy = isLazy
  }

  func map(_ address: DMAAddress, to guest: GuestAddress, count: UInt64, permissions: DMAPermissions) throws(DMAError) {
    if let left = mapsLeft {
      guard left > 0 else { throw .iommu(address) }
      mapsLeft = left - 1
    }
    do throws(DomainError) {
      try domain.map(address, byteCount: count, to: guest, permissions: permissions)
    } catch {
      throw .iommu(address)
    }
    maps.append(Map(address: address.rawValue, guest: guest.rawValue, count: count, permissions: permissions))
  }

  func unmap(_ address: DMAAddress, count: UInt64) throws(DMAError) {
    if refusesUnmap { throw .iommu(address) }
    unmaps += 1
    if isLazy { stale.append((address, count)) } else { try remove(address, count) }
  }

  func flush() throws(DMAError) {
    if refusesFlush { throw .iommu(DMAAddress(0)) }
    flushes += 1
    for (address, count) in stale { try remove(address, count) }
    stale = []
  }

  private func remove(_ address: DMAAddress, _ count: UInt64) throws(DMAError) {
    guard (try? domain.unmap(from: address, through: DMAAddress(address.rawValue + (count - 1)))) == 1 else {
      throw .iommu(address)
    }
  }
}

/// A grant table whose grants are mappings of a ``Domain``, each page under the address that a grant's number makes.
final class ModelGrants: GrantTable {
  let domain: Domain
  private var next: UInt32 = 8
  private(set) var granted: [UInt32: Bool] = [:]
  /// The other side does not let go of anything.
  var isInUse = false
  var isFull = false

  init(_ domain: Domain) { self.domain = domain }

  func grant(_ first: UInt64, count: UInt64, readOnly: Bool) throws(DMAError) -> UInt32 {
    guard !isFull else { throw .outOfGrants(count) }
    let reference = next
    next += UInt32(count)
    for i in 0..<count {
      do throws(DomainError) {
        try domain.map(
          DMAAddress(1 << 63 | (UInt64(reference) + i) << 12), byteCount: 4096, to: GuestAddress((first + i) << 12),
          permissions: readOnly ? .read : .readWrite)
      } catch {
        throw .outOfGrants(count)
      }
      granted[reference + UInt32(i)] = readOnly
    }
    return reference
  }

  func endAccess(_ first: UInt32, count: UInt64) -> Bool {
    guard !isInUse else { return false }
    for i in 0..<UInt32(count) {
      guard granted.removeValue(forKey: first + i) != nil else { return false }
      let address = UInt64(1) << 63 | UInt64(first + i) << 12
      guard (try? domain.unmap(from: DMAAddress(address), through: DMAAddress(address + 4095))) == 1 else {
        return false
      }
    }
    return true
  }
}
