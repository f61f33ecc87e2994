public import DMA

/// Buffers that were mapped once, before the first request: mapping one is arithmetic, and needs no IOMMU or grant
/// table.
///
/// There is a pool for each direction, so that what the device may do to a buffer is still what its descriptor says
/// (R177). Memory that is in no pool goes to the mapper underneath: a driver's long-lived tables, for example.
public final class PremappedMapper: DMAMapper {
  private struct Pool {
    var guest: GuestAddress
    var byteCount: UInt64
    var direction: DMADirection
    /// One mapping each, of so many bytes; the last may be shorter.
    var chunk: UInt64
    var ranges: [MappedRange]

    /// Which mapping an offset into the pool is in, and where. Most pools are one: a division costs as much as the rest
    /// of mapping.
    @inline(__always) func place(_ offset: UInt64) -> (chunk: Int, at: UInt64) {
      offset < chunk ? (0, offset) : (Int(offset / chunk), offset % chunk)
    }
  }
  private let inner: any DMAMapper
  private let pages: GuestPages
  /// Never change: requests look at them several times each, and a variable's every look would be checked for
  /// exclusivity.
  private let pools: [Pool]
  /// All pools lie in these addresses; most of what is synchronized does not.
  private let first: UInt64
  private let beyond: UInt64
  /// Of each pool, the indices of free buffers.
  private var free: [[Int]]
  /// A buffer, in bytes: a multiple of 4096.
  public let bufferSize: UInt64
  /// Maps that went to the mapper underneath since the pools were made.
  public private(set) var innerMaps: UInt64 = 0

  /// - Parameters:
  ///   - toDevice: buffers in the pool of those that the device reads.
  ///   - fromDevice: buffers in the pool of those that it writes.
  ///   - bufferSize: bytes; rounded up to a multiple of 4096.
  public init(
    over inner: any DMAMapper, pages: GuestPages, toDevice: Int, fromDevice: Int, bufferSize: UInt64
  ) throws(DMAError) {
    self.inner = inner
    self.pages = pages
    let size = (max(bufferSize, 1) + 4095) & ~4095
    self.bufferSize = size
    var pools: [Pool] = []
    do throws(DMAError) {
      try Self.add(toDevice, .toDevice, size, to: &pools, inner, pages)
      try Self.add(fromDevice, .fromDevice, size, to: &pools, inner, pages)
    } catch {
      Self.close(pools, inner, pages)
      throw error
    }
    self.pools = pools
    first = pools.map(\.guest.rawValue).min() ?? .max
    beyond = (pools.map { $0.guest.rawValue + ($0.byteCount - 1) }.max() ?? first) - first
    free = pools.map { Array((0..<Int($0.byteCount / size)).reversed()) }
  }

  deinit { Self.close(pools, inner, pages) }

  private static func add(
    _ count: Int, _ direction: DMADirection, _ bufferSize: UInt64, to pools: inout [Pool], _ inner: any DMAMapper,
    _ pages: GuestPages
  ) throws(DMAError) {
    guard count > 0 else { return }
    // Whole buffers: none of them may straddle two mappings.
    let chunk = inner.maxMappingSize / bufferSize * bufferSize
    guard chunk > 0 else { throw .tooLarge(bufferSize, maximum: inner.maxMappingSize) }
    let (byteCount, overflow) = bufferSize.multipliedReportingOverflow(by: UInt64(count))
    guard !overflow else { throw .outOfMemory(.max) }
    let guest = try pages.allocate(byteCount)
    // Entered before it is filled, so that an error on the way finds what to undo.
    pools.append(Pool(guest: guest, byteCount: byteCount, direction: direction, chunk: chunk, ranges: []))
    let at = pools.count - 1
    var done: UInt64 = 0
    while done < byteCount {
      let size = min(chunk, byteCount - done)
      pools[at].ranges.append(try inner.mapRange(GuestAddress(guest.rawValue + done), count: size, direction))
      done += size
    }
  }

  private static func close(_ pools: [Pool], _ inner: any DMAMapper, _ pages: GuestPages) {
    for pool in pools {
      for range in pool.ranges { try? inner.unmapRange(range) }
      pages.free(pool.guest, byteCount: pool.byteCount)
    }
  }

  /// A buffer for one direction, or nil when all of them are taken.
  public func take(_ direction: DMADirection) -> GuestAddress? {
    for i in pools.indices where pools[i].direction == direction {
      return free[i].popLast().map { GuestAddress(pools[i].guest.rawValue + UInt64($0) * bufferSize) }
    }
    return nil
  }

  /// Gives back what ``take(_:)`` returned.
  public func give(_ buffer: GuestAddress) {
    guard let i = pool(of: buffer) else { return }
    free[i].append(Int((buffer.rawValue - pools[i].guest.rawValue) / bufferSize))
  }

  private func pool(of guest: GuestAddress) -> Int? {
    guard guest.rawValue &- first <= beyond else { return nil }
    for i in pools.indices where guest.rawValue &- pools[i].guest.rawValue < pools[i].byteCount { return i }
    return nil
  }

  public var memory: GuestMemory { inner.memory }
  public var maxMappingSize: UInt64 { inner.maxMappingSize }

  public func allocateRange(_ count: UInt64, alignment: UInt64) throws(DMAError) -> MappedRange {
    try inner.allocateRange(count, alignment: alignment)
  }

  public func mapRange(_ guest: GuestAddress, count: UInt64, _ direction: DMADirection) throws(DMAError) -> MappedRange
  {
    try MappedRange.check(guest, count)
    guard let i = pool(of: guest) else {
      innerMaps &+= 1
      return try inner.mapRange(guest, count: count, direction)
    }
    guard pools[i].direction == direction else { throw .direction(guest) }
    let offset = guest.rawValue - pools[i].guest.rawValue
    let left = bufferSize - (bufferSize & (bufferSize - 1) == 0 ? offset & (bufferSize - 1) : offset % bufferSize)
    guard count <= left else { throw .tooLarge(count, maximum: left) }
    let (chunk, at) = pools[i].place(offset)
    let whole = pools[i].ranges[chunk]
    inner.synchronizeForDevice(whole, at: at, count: count)
    return MappedRange(
      address: DMAAddress(whole.address.rawValue + at), guest: guest, count: count, direction: direction)
  }

  public func unmapRange(_ range: MappedRange) throws(DMAError) {
    guard !range.isCoherent, let i = pool(of: range.guest) else { return try inner.unmapRange(range) }
    guard range.direction.comesBack else { return }
    let (chunk, at) = pools[i].place(range.guest.rawValue - pools[i].guest.rawValue)
    inner.synchronizeForDriver(pools[i].ranges[chunk], at: at, count: range.count)
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
    let (chunk, at) = pools[i].place(range.guest.rawValue - pools[i].guest.rawValue)
    return (pools[i].ranges[chunk], at + offset)
  }
}
