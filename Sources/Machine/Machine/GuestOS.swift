package import DMA
package import DriverDMA
internal import IOMMUs
package import VirtioDrivers

/// The guest's half of a platform: its memory, and the mapper that its DMA API has for each requester.
///
/// One thread uses it, the one that runs the guest's drivers.
package final class GuestOS: MachinePages, GrantTable {
  let platform: Platform
  package let memory: GuestMemory
  /// For rings, tables and the other memory that drivers keep.
  package let pages: GuestPages
  /// Pages that devices reach on every platform: the pool of a confidential guest, a run in machine memory.
  private let pool: GuestPages
  private let grants: XenGrantTable?

  init(_ platform: Platform, _ memory: GuestMemory, grants: XenGrantTable?) {
    self.platform = platform
    self.memory = memory
    self.grants = grants
    let all = MemoryPlan.pages
    pages = GuestPages(memory, at: GuestAddress(all.lowerBound), byteCount: UInt64(all.count))
    pool = GuestPages(memory, at: GuestAddress(MemoryPlan.pool.lowerBound), byteCount: UInt64(MemoryPlan.pool.count))
  }

  package func machinePage(of guestPage: UInt64) -> UInt64? { MemoryPlan.machinePage(guestPage) }
  package func grant(_ first: UInt64, count: UInt64, readOnly: Bool) throws(DMAError) -> UInt32 {
    guard let reference = grants?.grantAccess(to: first, count: count, readOnly: readOnly) else {
      throw .outOfGrants(count)
    }
    return reference
  }
  package func endAccess(_ first: UInt32, count: UInt64) -> Bool { grants?.endAccess(first, count: count) ?? false }

  /// The platform's addresses for a requester; nil where they are the physical ones.
  ///
  /// - Parameter domain: the domain that it is attached to, or nil.
  package func mapper(_ domain: UnitDomain?, flush: IOMMUMapper.Flush) throws(DMAError) -> (any DMAMapper)? {
    switch platform.reach {
    case .pool: return try BounceMapper(over: DirectMapper(pool), poolSize: 512 << 10)
    case .machineAddresses: return try XenMapper(self, contiguous: pool, poolSize: 512 << 10)
    case .everything: break
    }
    if platform.unit == .grants { return try GrantMapper(self, pages: pages) }
    guard let domain else { return nil }
    // The last addresses stay free for callers that choose the addresses of their mappings: see `UnitDomain.window`.
    let top = min(domain.window - 1, UInt64(UInt32.max))
    let aperture = domain.aperture.lowerBound...max(top, domain.aperture.lowerBound + domain.granule - 1)
    let addresses = IOVAAllocator(
      granule: domain.granule, aperture: aperture,
      reserved: domain.reserved.filter { $0.lowerBound <= aperture.upperBound })
    return IOMMUMapper(domain.driver, addresses: addresses, pages: pages, flush: flush)
  }

  /// What a driver has to know of the platform, with the mapper that was made for its device.
  package func driverPlatform(_ mapper: (any DMAMapper)?) -> DriverPlatform {
    DriverPlatform(pages: pages, mapper: mapper, isXen: platform.isXen, isRestricted: platform.isRestricted)
  }
}

extension UnitDomain {
  /// Where 64 pages are that no `IOVAAllocator` of the platform gives out.
  var window: UInt64 { aperture.upperBound - (128 * granule - 1) }
}
