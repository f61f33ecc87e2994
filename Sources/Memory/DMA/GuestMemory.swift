import Synchronization

/// A run of the machine's physical memory and the host memory behind it.
public struct MemoryRegion: Sendable {
  /// Its first byte, as the guest numbers it.
  public let guestAddress: GuestAddress
  /// Bytes, at least 1.
  public let byteCount: UInt64
  /// The host memory behind it.
  public let mapping: HostMapping
  /// Where in `mapping` the region starts, in bytes.
  public let mappingOffset: UInt64

  public init(guestAddress: GuestAddress, byteCount: UInt64, mapping: HostMapping, mappingOffset: UInt64 = 0) {
    self.guestAddress = guestAddress
    self.byteCount = byteCount
    self.mapping = mapping
    self.mappingOffset = mappingOffset
  }

  var hostStart: UInt64 { mapping.hostStart &+ mappingOffset }

  func overlaps(_ other: MemoryRegion) -> Bool {
    let a = guestAddress.rawValue, b = other.guestAddress.rawValue
    // Sizes are at least 1 and ends do not wrap (checked when a region is added).
    return a <= b + (other.byteCount - 1) && b <= a + (byteCount - 1)
  }
}

/// Why a region was not taken.
public enum MemoryRegionError: Error, Hashable, Sendable {
  /// Empty, wrapping around the end of an address space, or larger than its mapping.
  case malformed
  /// Some address of it already belongs to another region.
  case overlap
  /// No region starts at this address with this size.
  case missing
}

/// The machine's physical memory: regions of host mappings, swapped whole when the map changes.
///
/// Regions may come and go while devices run. Removing one waits until no queue uses it: every space over this memory
/// registers its fence here. Change it from the control thread only, never from a queue's.
public final class GuestMemory: Sendable {
  struct Table: Sendable {
    /// By guest address, ascending.
    var regions: [MemoryRegion] = []
  }
  private struct State {
    var table = Table()
    /// What was taken away while queues may still use it.
    var leaving: [MemoryRegion] = []
    var fences: [WeakFence] = []
    var log: DirtyLog?
  }
  private struct WeakFence {
    weak var fence: TranslationFence?
    weak var cache: TranslationTable?
  }
  private let state = Mutex(State())
  /// Who has the memory that is not mapped here: guest addresses from ``remoteStart`` on, none if it is nil.
  package let remote: (any RemoteMemory)?

  public init() { remote = nil }

  /// Memory of which a part is not mapped here: guest addresses from ``remoteStart`` on lead to `remote`, which knows
  /// it by the device's addresses.
  package init(remote: any RemoteMemory) { self.remote = remote }

  /// See ``init(remote:)``.
  package static let remoteStart = GuestAddress(1 << 63)

  /// One region of our own memory from guest address 0 on, for tests, benchmarks and machines in this process.
  public convenience init(byteCount: Int, at address: GuestAddress = GuestAddress(0)) throws(MappingError) {
    self.init()
    let mapping = try HostMapping(anonymous: byteCount)
    let region = MemoryRegion(guestAddress: address, byteCount: UInt64(byteCount), mapping: mapping)
    state.withLock { $0.table.regions = [region] }
  }

  /// The regions in force, by guest address.
  public var regions: [MemoryRegion] { state.withLock { $0.table.regions } }

  /// The regions that a device may be writing to: those in force, and those whose last users are waited for.
  var writtenRegions: [MemoryRegion] {
    state.withLock { $0.leaving.isEmpty ? $0.table.regions : $0.table.regions + $0.leaving }
  }

  /// All bytes of guest memory.
  public var byteCount: UInt64 { regions.reduce(0) { $0 &+ $1.byteCount } }

  /// Pages lost because a front-end cut a file short.
  public var lostPages: UInt64 { regions.reduce(0) { $0 &+ $1.mapping.lostPages } }

  /// Adds a region. Queues see it at their next miss; nothing is waited for.
  public func add(_ region: MemoryRegion) throws(MemoryRegionError) {
    try Self.check(region)
    let taken = state.withLock { state in
      guard !state.table.regions.contains(where: { $0.overlaps(region) }) else { return false }
      let index =
        state.table.regions.firstIndex { $0.guestAddress > region.guestAddress } ?? state.table.regions.endIndex
      state.table.regions.insert(region, at: index)
      return true
    }
    guard taken else { throw .overlap }
  }

  /// Removes the region with this address and size, and returns when nothing can use it any more.
  public func remove(guestAddress: GuestAddress, byteCount: UInt64) throws(MemoryRegionError) {
    let old: MemoryRegion? = state.withLock { state in
      let index = state.table.regions.firstIndex {
        $0.guestAddress == guestAddress && $0.byteCount == byteCount
      }
      guard let index else { return nil }
      let old = state.table.regions.remove(at: index)
      state.leaving = [old]
      return old
    }
    guard old != nil else { throw .missing }
    letGo()
  }

  /// Replaces the whole table, and returns when nothing can use an old region any more. On an error nothing changes.
  public func replace(with regions: [MemoryRegion]) throws(MemoryRegionError) {
    for (i, region) in regions.enumerated() {
      try Self.check(region)
      for other in regions[..<i] where other.overlaps(region) { throw .overlap }
    }
    let sorted = regions.sorted { $0.guestAddress < $1.guestAddress }
    state.withLock { state in
      state.leaving = state.table.regions
      state.table.regions = sorted
    }
    letGo()
  }

  /// Returns when nothing uses the regions that are leaving. They stay mapped until then, and what is written to them
  /// is still marked in the dirty log.
  private func letGo() {
    drain()
    let gone = state.withLock { state in
      defer { state.leaving = [] }
      return state.leaving
    }
    // Unmapping takes time, and no other thread should wait for the lock meanwhile.
    withExtendedLifetime(gone) {}
  }

  /// The log that device writes are to be marked in, or nil. Setting it returns when every queue has noticed.
  public var dirtyLog: DirtyLog? { state.withLock { $0.log } }

  /// See ``dirtyLog``.
  public func setDirtyLog(_ log: DirtyLog?) {
    let old = state.withLock { state in
      let old = state.log
      state.log = log
      return old
    }
    guard old !== log else { return }
    withExtendedLifetime(old) { drain() }
  }

  /// Copies bytes out of guest-physical memory, across regions. Returns how many: fewer where memory ends.
  public func copy(from address: GuestAddress, into bytes: inout MutableSpan<UInt8>) -> Int {
    var done = 0
    while done < bytes.count {
      let (at, isPastTheEnd) = address.rawValue.addingReportingOverflow(UInt64(done))
      guard !isPastTheEnd, let (region, offset) = region(at: GuestAddress(at)) else { break }
      let count = min(bytes.count - done, Int(clamping: region.byteCount - offset))
      var part = bytes.extracting(done..<done + count)
      let n = region.mapping.copy(from: Int(region.mappingOffset + offset), into: &part)
      guard n > 0 else { break }
      done += n
    }
    return done
  }

  /// Copies bytes into guest-physical memory, across regions. Returns how many: fewer where memory ends.
  public func copy(_ bytes: Span<UInt8>, to address: GuestAddress) -> Int {
    var done = 0
    while done < bytes.count {
      let (at, isPastTheEnd) = address.rawValue.addingReportingOverflow(UInt64(done))
      guard !isPastTheEnd, let (region, offset) = region(at: GuestAddress(at)) else { break }
      let count = min(bytes.count - done, Int(clamping: region.byteCount - offset))
      let n = region.mapping.copy(bytes.extracting(done..<done + count), to: Int(region.mappingOffset + offset))
      guard n > 0 else { break }
      done += n
    }
    return done
  }

  /// Cells over guest-physical memory, which must lie in one region: the driver's view of a ring.
  public func cells(at address: GuestAddress, byteCount: Int) -> RingMemory? {
    guard let (region, offset) = region(at: address), UInt64(byteCount) <= region.byteCount - offset else { return nil }
    return region.mapping.cells(from: Int(region.mappingOffset + offset), byteCount: byteCount)
  }

  /// The run of host memory around a guest address.
  public func run(at address: GuestAddress) -> HostRun? {
    guard let (region, _) = region(at: address) else { return nil }
    return HostRun(
      start: region.guestAddress.rawValue, last: region.guestAddress.rawValue + (region.byteCount - 1),
      host: region.hostStart, permissions: .readWrite)
  }

  /// As much of a run of guest memory as one region backs, around a device address inside the run; nil where there is
  /// no memory.
  package func run(behind run: GuestRun, around address: DMAAddress) -> HostRun? {
    guard run.first <= address, address <= run.last else { return nil }
    let a = address.rawValue
    let (guest, wraps) = run.guest.rawValue.addingReportingOverflow(a - run.first.rawValue)
    if !wraps, guest >= Self.remoteStart.rawValue, remote != nil {
      return HostRun(remoteFrom: run.first, through: run.last, permissions: run.permissions)
    }
    guard !wraps, let region = self.run(at: GuestAddress(guest)) else { return nil }
    let before = min(a - run.first.rawValue, guest - region.start)
    let after = min(run.last.rawValue - a, region.last - guest)
    return HostRun(
      start: a - before, last: a + after, host: region.host &+ (guest - region.start - before),
      permissions: run.permissions)
  }

  /// Each space that keeps host addresses of this memory registers here: `fence` is drained, and `cache` emptied, when
  /// a region is removed.
  package func register(_ fence: TranslationFence, cache: TranslationTable? = nil) {
    state.withLock { state in
      state.fences.removeAll { $0.fence == nil }
      state.fences.append(WeakFence(fence: fence, cache: cache))
    }
  }

  private func drain() {
    let users = state.withLock { $0.fences.compactMap { user in user.fence.map { ($0, user.cache) } } }
    for (fence, cache) in users {
      cache?.remove(from: 0, through: .max)
      fence.drain()
      guard let cache else { continue }
      // A look-up that had read the old regions may have filled the cache since. It is over now, so this is the last
      // time.
      if cache.remove(from: 0, through: .max) > 0 { fence.drain() }
    }
  }

  private func region(at address: GuestAddress) -> (MemoryRegion, UInt64)? {
    state.withLock { state in
      // Binary search for the last region that starts at or below the address.
      var low = 0
      var high = state.table.regions.count
      while low < high {
        let middle = (low + high) / 2
        if state.table.regions[middle].guestAddress <= address { low = middle + 1 } else { high = middle }
      }
      guard low > 0 else { return nil }
      let region = state.table.regions[low - 1]
      let offset = address.rawValue - region.guestAddress.rawValue
      return offset < region.byteCount ? (region, offset) : nil
    }
  }

  private static func check(_ region: MemoryRegion) throws(MemoryRegionError) {
    guard region.byteCount > 0,
      region.guestAddress.rawValue <= UInt64.max - (region.byteCount - 1),
      region.mappingOffset <= UInt64(region.mapping.byteCount),
      region.byteCount <= UInt64(region.mapping.byteCount) - region.mappingOffset
    else { throw .malformed }
  }
}
