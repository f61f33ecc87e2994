import DMA
import DriverDMA

/// Maps as the platform does, but for one buffer, which it maps in the way that a cell is about.
final class ShapedMapper: DMAMapper {
  /// How the buffer is mapped.
  enum Plan {
    /// As any other.
    case ordinary
    /// Each page where it says, or nowhere: page after page from the start of the window on, or up to the end of the
    /// aperture.
    case pages([GuestAddress?], permissions: DMAPermissions?, endsAperture: Bool)
    /// With the permissions of this direction, not those of the request's.
    case given(DMADirection)
    /// Not mapped: the device gets this address.
    case unmapped(DMAAddress)
  }
  private let inner: any DMAMapper
  /// A domain to make mappings in, and addresses of it that the platform's mapper never gives out.
  private let domain: UnitDomain?
  private let window: UInt64
  private var live: [DMAAddress: [(address: DMAAddress, count: UInt64)]] = [:]
  /// The buffer that ``plan`` is for.
  var buffer: GuestAddress?
  var plan = Plan.ordinary

  init(over inner: any DMAMapper, domain: UnitDomain?, window: UInt64) {
    self.inner = inner
    self.domain = domain
    self.window = window
  }

  var memory: GuestMemory { inner.memory }
  var maxMappingSize: UInt64 { inner.maxMappingSize }
  func allocateRange(_ count: UInt64, alignment: UInt64) throws(DMAError) -> MappedRange {
    try inner.allocateRange(count, alignment: alignment)
  }

  func mapRange(_ guest: GuestAddress, count: UInt64, _ direction: DMADirection) throws(DMAError) -> MappedRange {
    guard guest == buffer else { return try inner.mapRange(guest, count: count, direction) }
    switch plan {
    case .ordinary: return try inner.mapRange(guest, count: count, direction)
    case .given(let other):
      var range = try inner.mapRange(guest, count: count, other)
      live[range.address] = []
      range.direction = direction
      return range
    case .unmapped(let address):
      live[address] = []
      return MappedRange(address: address, guest: guest, count: count, direction: direction)
    case .pages(let pages, let permissions, let endsAperture):
      guard let domain else { throw .iommu(DMAAddress(window)) }
      let size = UInt64(pages.count) * domain.granule
      let start = endsAperture ? domain.aperture.upperBound - (size - 1) : window
      var made: [(DMAAddress, UInt64)] = []
      for (i, page) in pages.enumerated() {
        guard let page else { continue }
        let address = DMAAddress(start + UInt64(i) * domain.granule)
        try domain.driver.map(
          address, to: page, count: domain.granule, permissions: permissions ?? direction.permissions)
        made.append((address, domain.granule))
      }
      live[DMAAddress(start)] = made
      return MappedRange(address: DMAAddress(start), guest: guest, count: count, direction: direction)
    }
  }

  func unmapRange(_ range: MappedRange) throws(DMAError) {
    guard range.guest == buffer, let made = live.removeValue(forKey: range.address) else {
      return try inner.unmapRange(range)
    }
    switch plan {
    case .given(let other):
      var range = range
      range.direction = other
      try inner.unmapRange(range)
    default:
      for (address, count) in made { try domain?.driver.unmap(address, count: count) }
      try domain?.driver.flush()
    }
  }

  func synchronizeForDevice(_ range: MappedRange, at offset: UInt64, count: UInt64) {
    if live[range.address] == nil { inner.synchronizeForDevice(range, at: offset, count: count) }
  }
  func synchronizeForDriver(_ range: MappedRange, at offset: UInt64, count: UInt64) {
    if live[range.address] == nil { inner.synchronizeForDriver(range, at: offset, count: count) }
  }
}
