public import DMA

/// Which device addresses are free in one domain: an allocator without locks, for one thread.
///
/// It takes from the top, so that low addresses stay free for devices that can name no others. Drivers map the same few
/// sizes over and over; so each user of the domain has a cache of its own, which answers those without a search.
public final class IOVAAllocator {
  /// The smallest piece, in bytes: a power of two.
  public let granule: UInt64
  /// The first and the last device address that may be given out.
  public let aperture: ClosedRange<UInt64>
  /// In granules.
  private var free = FreeRanges()
  private var caches: [IOVACache] = []

  /// - Parameters:
  ///   - aperture: only whole granules inside it are used.
  ///   - reserved: addresses that must not be given out, inside the aperture or not: every granule that one touches is
  ///     left out.
  public init(granule: UInt64 = 4096, aperture: ClosedRange<UInt64>, reserved: [ClosedRange<UInt64>] = []) {
    precondition(granule > 0 && granule & (granule - 1) == 0, "a granule is a power of two")
    self.granule = granule
    self.aperture = aperture
    let first = aperture.lowerBound / granule + (aperture.lowerBound % granule == 0 ? 0 : 1)
    let end = aperture.upperBound / granule
    if aperture.upperBound % granule == granule - 1 {
      _ = free.insert(first, through: end)
    } else if end > 0 {
      _ = free.insert(first, through: end - 1)
    }
    for range in reserved { free.remove(range.lowerBound / granule, through: range.upperBound / granule) }
  }

  /// Bytes that are free here or in a cache, in pieces perhaps. An aperture of all addresses counts as a granule less.
  public var freeBytes: UInt64 {
    var granules = free.count
    for cache in caches { granules &+= cache.granules }
    let (bytes, overflow) = granules.multipliedReportingOverflow(by: granule)
    return overflow ? UInt64.max - (granule - 1) : bytes
  }

  // MARK: Without a cache

  /// Takes addresses for `byteCount` bytes, as high as they go.
  ///
  /// - Parameters:
  ///   - alignment: a power of two; less than the granule counts as the granule.
  ///   - limit: the last address that may be used.
  public func allocate(_ byteCount: UInt64, alignment: UInt64 = 1, limit: UInt64 = .max) throws(DMAError) -> DMAAddress
  {
    guard byteCount > 0, alignment > 0, alignment & (alignment - 1) == 0 else {
      throw .range(GuestAddress(0), count: byteCount)
    }
    if let address = take(byteCount, alignment, limit) { return address }
    // What caches hold is free too, and more useful in one piece now.
    for user in caches.indices { emptyCache(of: user) }
    guard let address = take(byteCount, alignment, limit) else { throw .outOfAddresses(byteCount) }
    return address
  }

  private func take(_ byteCount: UInt64, _ alignment: UInt64, _ limit: UInt64) -> DMAAddress? {
    guard limit >= granule - 1 else { return nil }
    let last = (limit - (granule - 1)) / granule
    return free.takeHighest(granules(byteCount), alignment: max(alignment / granule, 1), through: last).map {
      DMAAddress($0 * granule)
    }
  }

  /// Gives back what ``allocate(_:alignment:limit:)`` returned for `byteCount`. False, and nothing changes, when some
  /// of it is free already.
  @discardableResult public func free(_ address: DMAAddress, byteCount: UInt64) -> Bool {
    guard byteCount > 0 else { return false }
    let first = address.rawValue / granule
    return free.insert(first, through: first + (granules(byteCount) - 1))
  }

  private func granules(_ byteCount: UInt64) -> UInt64 { (byteCount - 1) / granule + 1 }

  // MARK: With a user's cache

  /// A user of the domain, with device addresses up to `limit`: its number, for the functions below.
  public func addUser(limit: UInt64 = .max) -> Int {
    caches.append(IOVACache(limit: limit))
    return caches.count - 1
  }

  /// As ``allocate(_:alignment:limit:)``, from the user's cache if it has some of the size. Sizes up to 32 granules are
  /// rounded up to a power of two, and are aligned to it.
  public func allocate(_ byteCount: UInt64, alignment: UInt64 = 1, user: Int) throws(DMAError) -> DMAAddress {
    guard byteCount > 0 else { throw .range(GuestAddress(0), count: 0) }
    caches[user].all &+= 1
    let limit = caches[user].limit
    guard let order = IOVACache.order(granules(byteCount)) else {
      return try allocate(byteCount, alignment: alignment, limit: limit)
    }
    let size = granule << UInt64(order)
    if alignment <= size, let address = caches[user].take(order) { return DMAAddress(address) }
    return try allocate(size, alignment: max(alignment, size), limit: limit)
  }

  /// Gives back what ``allocate(_:alignment:user:)`` returned to the same user for `byteCount`.
  public func free(_ address: DMAAddress, byteCount: UInt64, user: Int) {
    guard byteCount > 0 else { return }
    guard let order = IOVACache.order(granules(byteCount)) else {
      free(address, byteCount: byteCount)
      return
    }
    if !caches[user].put(address.rawValue, order) { free(address, byteCount: granule << UInt64(order)) }
  }

  /// Makes what a user's cache holds free for all users.
  public func emptyCache(of user: Int) {
    for order in 0..<IOVACache.orders {
      while let address = caches[user].pop(order) { free(DMAAddress(address), byteCount: granule << UInt64(order)) }
    }
  }

  /// How many of a user's allocations its cache answered, and of how many.
  public func counts(of user: Int) -> (hits: UInt64, all: UInt64) { (caches[user].hits, caches[user].all) }
}

/// Addresses that one user gave back, by size: 1, 2, 4, 8, 16 or 32 granules. The last one in is the first one out,
/// because the IOMMU's own tables for it are the warmest.
struct IOVACache {
  static var orders: Int { 6 }
  private static var depth: Int { 64 }
  let limit: UInt64
  private var stacks: [[UInt64]] = []
  private(set) var hits: UInt64 = 0
  var all: UInt64 = 0

  init(limit: UInt64) {
    self.limit = limit
    for _ in 0..<Self.orders {
      var stack: [UInt64] = []
      stack.reserveCapacity(Self.depth)
      stacks.append(stack)
    }
  }

  /// The power of two that so many granules are rounded up to; nil for more than a cache takes.
  static func order(_ granules: UInt64) -> Int? {
    guard granules <= 1 << UInt64(orders - 1) else { return nil }
    return granules == 1 ? 0 : 64 - (granules - 1).leadingZeroBitCount
  }

  /// Granules that wait here.
  var granules: UInt64 {
    var sum: UInt64 = 0
    for order in stacks.indices { sum += UInt64(stacks[order].count) << UInt64(order) }
    return sum
  }

  mutating func take(_ order: Int) -> UInt64? {
    guard let address = stacks[order].popLast() else { return nil }
    hits &+= 1
    return address
  }

  mutating func pop(_ order: Int) -> UInt64? { stacks[order].popLast() }

  /// False when the stack is full.
  mutating func put(_ address: UInt64, _ order: Int) -> Bool {
    guard stacks[order].count < Self.depth else { return false }
    stacks[order].append(address)
    return true
  }
}
