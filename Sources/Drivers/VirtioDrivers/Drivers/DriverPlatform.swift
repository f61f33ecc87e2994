internal import DMA
public import DriverDMA
public import Virtio

/// What a driver knows of the machine it runs on, and the rule that chooses how its devices reach memory (§6.1).
/// `AddressPath` is the device's half of the rule.
///
/// The rule, from the QEMU patch of April 2016 that introduced the bit (as VIRTIO_F_IOMMU_PLATFORM; "[PATCH V2 RFC]
/// fixup! virtio: convert to use DMA api"): a device that has the bit gets the platform's addresses; so does every
/// device of a Xen guest, whose physical addresses mean nothing outside; any other gets physical addresses, even if the
/// machine's tables list an IOMMU, because without the bit it bypasses the IOMMU.
public struct DriverPlatform {
  /// What to do about a device without the bit where the platform's addresses are not the physical ones (R175).
  public enum Mismatch: Hashable, Sendable {
    /// Bypass the IOMMU, as the rule says: so do the devices of hosts older than the bit, SPARC64's and PPC64's among
    /// them.
    case bypass
    /// Refuse the device: a physical device without the bit would be behind the IOMMU all the same, and physical
    /// addresses would be some other memory there.
    case refuse
  }
  /// The driver's own memory.
  public var pages: GuestPages
  /// How the platform makes device addresses, by what it has for that: an IOMMU, a pool, grants, or nothing.
  public var mapper: any DMAMapper
  /// Physical addresses, for devices that bypass the platform's IOMMU.
  public var direct: any DMAMapper
  /// The machine is a Xen guest (R173).
  public var isXen: Bool
  /// Devices reach nothing that was not given to them, and have to know it: a confidential guest, or Xen where grants
  /// are compulsory (R174).
  public var isRestricted: Bool
  /// See ``Mismatch-swift.enum``.
  public var mismatch: Mismatch

  /// A platform whose devices reach memory by `mapper`; nil where device addresses are the physical ones.
  public init(
    pages: GuestPages, mapper: (any DMAMapper)? = nil, isXen: Bool = false, isRestricted: Bool = false,
    mismatch: Mismatch = .bypass
  ) {
    self.pages = pages
    let direct = DirectMapper(pages)
    self.direct = direct
    self.mapper = mapper ?? direct
    self.isXen = isXen
    self.isRestricted = isRestricted
    self.mismatch = mismatch
  }

  /// What to accept of what a device offers, for a driver that can use `wanted`: those, and what belongs to the
  /// platform and not to the driver (R171).
  public func features(_ wanted: Features, of offeredFeatures: Features) -> Features {
    // For a device without virtio 1, ANY_LAYOUT has to be accepted, too (§6.3).
    let old: Features = offeredFeatures.contains(.version1) ? [] : .anyLayout
    return offeredFeatures.intersection(wanted.union([.version1, .accessPlatform, .orderPlatform]).union(old))
  }

  /// The mapper for a device, by what was negotiated with it.
  public func mapper(negotiated: Features) -> any DMAMapper {
    switch AddressPath(negotiated: negotiated) {
    case .platform: mapper
    case .physical: isXen ? mapper : direct
    }
  }

  /// Refuses a device that this platform cannot let in (R174, R175). Called before any memory is given to it.
  ///
  /// - Parameter offeredFeatures: what the device offers. The driver may accept less, at its own risk.
  public func check(offeredFeatures: Features) throws(DriverError) {
    let knowsPlatform = offeredFeatures.contains(.accessPlatform)
    if isRestricted {
      let missing = Features([.version1, .accessPlatform]).subtracting(offeredFeatures)
      guard missing.isEmpty else { throw .restricted(missing: missing) }
    }
    guard mismatch == .refuse, !knowsPlatform, !isXen else { return }
    let (probe, mapped) = try probe()
    guard mapped.rawValue == probe.rawValue else { throw .addressMismatch(guest: probe, mapped: mapped) }
  }

  /// Where a page is, and where the platform's mapper would put it.
  private func probe() throws(DriverError) -> (GuestAddress, DMAAddress) {
    do throws(DMAError) {
      let page = try pages.allocate(GuestPages.pageSize)
      defer { pages.free(page, byteCount: GuestPages.pageSize) }
      let mapping = try DMAMapping(page, count: GuestPages.pageSize, .bidirectional, by: mapper)
      let mapped = mapping.address
      try mapping.unmap()
      return (page, mapped)
    } catch {
      throw .dma(error)
    }
  }
}
