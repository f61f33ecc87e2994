import Synchronization

/// Why a mapping of a domain could not be made or undone.
public enum DomainError: Error, Hashable, Sendable {
  /// Not a multiple of the granule, empty, or past the end of an address space.
  case range
  /// Some address of it is mapped already.
  case overlap
  /// Only a part of a mapping would go: mappings go whole or stay (§5.13.6.6).
  case split
  /// More mappings than the domain takes.
  case full
}

/// An IOMMU domain in this process: mappings from device addresses to guest-physical addresses with permissions, as a space
/// that devices attached to it see (§5.13).
///
/// Mapping and unmapping are a control thread's; queues look things up at any time. ``unmap(from:through:)`` returns when
/// nothing, input and output in flight included, can still use what went.
public final class Domain: DMASpace {
  struct Mapping {
    var first: UInt64
    var last: UInt64
    var guest: UInt64
    var permissions: DMAPermissions
  }
  private struct State {
    /// By first address, ascending, without overlap.
    var mappings: [Mapping] = []
    var hits: UInt64 = 0
    var misses: UInt64 = 0
    var faults: [DMAFault] = []
  }
  public let fence = TranslationFence()
  public let memory: GuestMemory
  /// What queues have looked up; filled from the mappings, emptied before them.
  private let cache = TranslationTable()
  private let state = Mutex(State())
  public let maxMappings: Int

  public init(_ memory: GuestMemory, maxMappings: Int = 1 << 20) {
    self.memory = memory
    self.maxMappings = maxMappings
    memory.register(fence, cache: cache)
  }

  public var table: TranslationTable? { cache }
  public var dirtyLog: DirtyLog? { memory.dirtyLog }

  /// Mappings in force.
  public var mappings: Int { state.withLock { $0.mappings.count } }
  /// Bytes of device addresses that are mapped.
  public var byteCount: UInt64 { state.withLock { $0.mappings.reduce(0) { $0 &+ ($1.last - $1.first) &+ 1 } } }
  /// Look-ups that a queue answered itself, and those that came here.
  public var lookUps: (hits: UInt64, misses: UInt64) { state.withLock { ($0.hits, $0.misses) } }

  /// Makes `byteCount` bytes of guest memory visible from `address` on. Guest memory need not exist yet: until it does, accesses fault.
  public func map(_ address: DMAAddress, byteCount: UInt64, to guest: GuestAddress, permissions: DMAPermissions) throws(DomainError) {
    let mask = TranslationTable.granule - 1
    guard byteCount > 0, byteCount & mask == 0, address.rawValue & mask == 0, guest.rawValue & mask == 0,
      address.rawValue <= UInt64.max - (byteCount - 1), guest.rawValue <= UInt64.max - (byteCount - 1)
    else { throw .range }
    let new = Mapping(first: address.rawValue, last: address.rawValue + (byteCount - 1), guest: guest.rawValue, permissions: permissions)
    let error: DomainError? = state.withLock { state in
      guard state.mappings.count < maxMappings else { return .full }
      let at = Self.firstIndex(state.mappings, endingAtOrAfter: new.first)
      if at < state.mappings.count, state.mappings[at].first <= new.last { return .overlap }
      state.mappings.insert(new, at: at)
      return nil
    }
    if let error { throw error }
  }

  /// Removes the mappings inside `first` through `last`. Holes are fine; a mapping that is only partly inside makes the call
  /// fail and change nothing. Returns how many went.
  @discardableResult public func unmap(from first: DMAAddress, through last: DMAAddress) throws(DomainError) -> Int {
    let (first, last) = (first.rawValue, last.rawValue)
    guard first <= last else { throw .range }
    let result: Result<Int, DomainError> = state.withLock { state in
      let low = Self.firstIndex(state.mappings, endingAtOrAfter: first)
      var high = low
      while high < state.mappings.count, state.mappings[high].first <= last { high += 1 }
      guard low < high else { return .success(0) }
      if state.mappings[low].first < first || state.mappings[high - 1].last > last { return .failure(.split) }
      state.mappings.removeSubrange(low..<high)
      // Under the same lock as translate(_:for:waking:) fills the cache: no look-up can put back what goes.
      cache.remove(from: first, through: last)
      return .success(high - low)
    }
    let count = try result.get()
    if count > 0 { fence.drain() }
    return count
  }

  /// Removes every mapping.
  public func removeAll() {
    state.withLock { state in
      state.mappings.removeAll()
      cache.remove(from: 0, through: .max)
    }
    fence.drain()
  }

  public func translate(_ address: DMAAddress, for access: DMAAccess, waking waiter: (any TranslationWaiter)?) throws(DMAInterruption) -> HostRun {
    let a = address.rawValue
    let result: Result<HostRun, DMAInterruption> = state.withLock { state in
      let at = Self.firstIndex(state.mappings, endingAtOrAfter: a)
      guard at < state.mappings.count, state.mappings[at].first <= a else {
        return .failure(.fault(DMAFault(address: address, access: access, reason: .unmapped)))
      }
      let mapping = state.mappings[at]
      guard mapping.permissions.allows(access) else {
        return .failure(.fault(DMAFault(address: address, access: access, reason: .permission)))
      }
      let whole = GuestRun(
        first: DMAAddress(mapping.first), last: DMAAddress(mapping.last), guest: GuestAddress(mapping.guest), permissions: mapping.permissions)
      guard let run = memory.run(behind: whole, around: address) else {
        return .failure(.fault(DMAFault(address: address, access: access, reason: .unmapped)))
      }
      // A run that is not made of whole pages stays with the queue that asked.
      _ = cache.insert(run)
      return .success(run)
    }
    return try result.get()
  }

  public func record(hits: UInt64, misses: UInt64) {
    state.withLock { state in
      state.hits &+= hits
      state.misses &+= misses
    }
  }

  /// The last faults, oldest first: at most 64 are kept.
  public var faults: [DMAFault] { state.withLock { $0.faults } }

  public func report(_ fault: DMAFault) {
    state.withLock { state in
      if state.faults.count == 64 { state.faults.removeFirst() }
      state.faults.append(fault)
    }
  }

  private static func firstIndex(_ mappings: [Mapping], endingAtOrAfter address: UInt64) -> Int {
    var low = 0
    var high = mappings.count
    while low < high {
      let middle = (low + high) / 2
      if mappings[middle].last < address { low = middle + 1 } else { high = middle }
    }
    return low
  }
}
