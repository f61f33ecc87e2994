public import DMA
public import DriverDMA
public import IOMMUInterface
internal import Virtio

/// A domain of a virtio-iommu as its driver knows it, and what a mapper needs of it (§5.13.6). One thread uses it, the
/// one that uses its ``driver``.
///
/// The device has the domain for as long as an endpoint is attached: the first ``attach(_:)`` makes it, empty; the last
/// ``detach(_:)`` ends it and its mappings.
public final class VirtioIOMMUDomain: IOMMUDomain {
  /// Whose domain it is.
  public let driver: VirtioIOMMUDriver
  /// Its number, in the device's `domain_range`.
  public let number: UInt32
  /// Whether its endpoints reach physical memory, and nothing can be mapped: VIRTIO_IOMMU_F_BYPASS_CONFIG must be
  /// negotiated.
  public let isBypass: Bool

  /// The domain of a number that no other object has.
  public init(_ driver: VirtioIOMMUDriver, _ number: UInt32, bypass: Bool = false) {
    self.driver = driver
    self.number = number
    isBypass = bypass
  }

  /// Attaches an endpoint; one that is attached elsewhere leaves there.
  public func attach(_ endpoint: RequesterID) throws(VirtioIOMMUDriverError) {
    try driver.attach(endpoint, to: number, bypass: isBypass)
  }

  /// Detaches an endpoint; when this returns it can use no mapping of the domain.
  public func detach(_ endpoint: RequesterID) throws(VirtioIOMMUDriverError) {
    try driver.detach(endpoint, from: number)
  }

  /// Addresses for the domain's mappings: what the device can map, without what these endpoints keep for themselves.
  public func makeAddresses(for endpoints: [RequesterID]) throws(VirtioIOMMUDriverError) -> IOVAAllocator {
    var reserved: [ClosedRange<UInt64>] = []
    for endpoint in endpoints { for memory in try driver.probe(endpoint) { reserved.append(memory.range) } }
    return IOVAAllocator(
      granule: driver.configuration.granule, aperture: driver.configuration.inputRange, reserved: reserved)
  }

  public func map(
    _ address: DMAAddress, to guest: GuestAddress, count: UInt64, permissions: DMAPermissions
  ) throws(DMAError) {
    try rethrowing(
      driver.map(address, byteCount: count, to: guest, permissions: permissions, in: number),
      saying: { _ in DMAError.iommu(address) })
  }

  /// When this returns no endpoint can use the mapping: there is nothing to flush.
  public func unmap(_ address: DMAAddress, count: UInt64) throws(DMAError) {
    try rethrowing(driver.unmap(address, byteCount: count, in: number), saying: { _ in DMAError.iommu(address) })
  }
}
