public import DMA

/// Buffers that were mapped once, before the first request: mapping one is arithmetic, and no IOMMU or grant table hears of it.
///
/// There is a pool for each direction, so that what the device may do to a buffer is still what its descriptor says (R177). Memory that is
/// in no pool goes to the mapper underneath: a driver's long-lived tables, for example.
public final class PremappedMapper: DMAMapper {
  private struct Pool {
    var guest: GuestAddress
    var byteCount: UInt64
    var direction: DMADirection
    /// One mapping each, of so many bytes; the last may be shorter.
    var chunk: UInt64
    var addresses: [DMAAddress]
    /// Indices of buffers that nobody has.
    var free: [Int]
  }
  private let inner: any DMAMapper
  private let pages: GuestPages
  private var pools: [Pool] = []
  /// A buffer, in bytes: a multiple of 4096.
  public let bufferSize: UInt64
  /// Maps that went to the mapper underneath since the pools were made.
  public private(set) var innerMaps: UInt64 = 0

  /// - Parameters:
  ///   - toDevice: buffers in the pool of those that the device reads.
  ///   - fromDevice: buffers in the pool of those that it writes.
  ///   - bufferSize: bytes; rounded up to a multiple of 4096.
  public init(over inner: any DMAMapper, pages: GuestPages, toDevice: Int, fromDevice: Int, bufferSize: UInt64) throws(DMAError) {
    self.inner = inner
    self.pages = pages
    self.bufferSize = (max(bufferSize, 1) + 4095) & ~4095
    do throws(DMAError) {
      try addPool(toDevice, .toDevice)
      try addPool(fromDevice, .fromDevice)
    } catch {
      close()
      throw error
    }
  }

  deinit { close() }

  private func addPool(_ count: Int, _ direction: DMADirection) throws(DMAError) {
    guard count > 0 else { return }
    // Whole buffers: none of them may straddle two mappings.
    let chunk = inner.maxMappingSize / bufferSize * bufferSize
    guard chunk > 0 else { throw .tooLarge(bufferSize, maximum: inner.maxMappingSize) }
    let (byteCount, overflow) = bufferSize.multipliedReportingOverflow(by: UInt64(count))
    guard !overflow else { throw .outOfMemory(.max) }
    let guest = try pages.allocate(byteCount)
    // Entered before it is filled, so that an error on the way finds what to undo.
    pools.append(Pool(guest: guest, byteCount: byteCount, direction: direction, chunk: chunk, addresses: [], free: []))
    let at = pools.count - 1
    var done: UInt64 = 0
    while done < byteCount {
      let size = min(chunk, byteCount - done)
      let range = try inner.mapRange(GuestAddress(guest.rawValue + done), count: size, direction)
      pools[at].addresses.append(range.address)
      done += size
    }
    pools[at].free = Array((0..<count).reversed())
  }

  private func close() {
    for pool in pools {
      for i in pool.addresses.indices { try? inner.unmapRange(chunk(i, of: pool)) }
      pages.free(pool.guest, byteCount: pool.byteCount)
    }
    pools = []
  }

  private func chunk(_ i: Int, of pool: Pool) -> MappedRange {
    let start = UInt64(i) * pool.chunk
    return MappedRange(
      address: pool.addresses[i], guest: GuestAddress(pool.guest.rawValue + start), count: min(pool.chunk, pool.byteCount - start),
      direction: pool.direction)
  }

  /// A buffer for one direction, or nil when all of them are taken.
  public func take(_ direction: DMADirection) -> GuestAddress? {
    for i in pools.indices where pools[i].direction == direction {
      return pools[i].free.popLast().map { GuestAddress(pools[i].guest.rawValue + UInt64($0) * bufferSize) }
    }
    return nil
  }

  /// Gives back what ``take(_:)`` returned.
  public func give(_ buffer: GuestAddress) {
    guard let i = pool(of: buffer) else { return }
    pools[i].free.append(Int((buffer.rawValue - pools[i].guest.rawValue) / bufferSize))
  }

  private func pool(of guest: GuestAddress) -> Int? {
    for i in pools.indices where guest.rawValue &- pools[i].guest.rawValue < pools[i].byteCount { return i }
    return nil
  }

  public var memory: GuestMemory { inner.memory }
  public var maxMappingSize: UInt64 { inner.maxMappingSize }

  public func allocateRange(_ count: UInt64, alignment: UInt64) throws(DMAError) -> MappedRange {
    try inner.allocateRange(count, alignment: alignment)
  }

  public func mapRange(_ guest: GuestAddress, count: UInt64, _ direction: DMADirection) throws(DMAError) -> MappedRange {
    try MappedRange.check(guest, count)
    guard let i = pool(of: guest) else {
      innerMaps &+= 1
      return try inner.mapRange(guest, count: count, direction)
    }
    guard pools[i].direction == direction else { throw .direction(guest) }
    let offset = guest.rawValue - pools[i].guest.rawValue
    guard count <= bufferSize - offset % bufferSize else { throw .tooLarge(count, maximum: bufferSize - offset % bufferSize) }
    let address = pools[i].addresses[Int(offset / pools[i].chunk)].rawValue + offset % pools[i].chunk
    let range = MappedRange(address: DMAAddress(address), guest: guest, count: count, direction: direction)
    synchronizeForDevice(range, at: 0, count: count)
    return range
  }

  public func unmapRange(_ range: MappedRange) throws(DMAError) {
    guard !range.isCoherent, pool(of: range.guest) != nil else { return try inner.unmapRange(range) }
    synchronizeForDriver(range, at: 0, count: range.count)
  }

  public func synchronizeForDevice(_ range: MappedRange, at offset: UInt64, count: UInt64) {
    let (whole, at) = innerRange(range, offset)
    inner.synchronizeForDevice(whole, at: at, count: count)
  }

  public func synchronizeForDriver(_ range: MappedRange, at offset: UInt64, count: UInt64) {
    guard range.direction.comesBack else { return }
    let (whole, at) = innerRange(range, offset)
    inner.synchronizeForDriver(whole, at: at, count: count)
  }

  /// The range that the mapper underneath knows, and where in it a part is.
  private func innerRange(_ range: MappedRange, _ offset: UInt64) -> (MappedRange, UInt64) {
    guard !range.isCoherent, let i = pool(of: range.guest) else { return (range, offset) }
    let start = range.guest.rawValue - pools[i].guest.rawValue
    return (chunk(Int(start / pools[i].chunk), of: pools[i]), start % pools[i].chunk + offset)
  }
}
