public import DMA
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

/// An IOMMU domain in this process: mappings from device addresses to guest-physical addresses with permissions, which
/// every endpoint attached to it sees (§5.13).
///
/// Mapping, unmapping, attaching and detaching are control threads'; queues look things up at any time. What takes
/// something away returns when no endpoint, input and output in flight included, can still use it.
///
/// A domain is a `DMASpace` too, seen by a device that is attached for its whole life and whose bus mastering is
/// always on.
public final class Domain: AddressTranslation {
  /// A refused access that was reported to the domain.
  public struct FaultRecord: Hashable, Sendable {
    /// What was refused, and why.
    public var fault: DMAFault
    /// The requester; nil for a device that uses the domain itself as its space.
    public var requester: RequesterID?
  }
  fileprivate struct WeakEndpoint {
    weak var endpoint: EndpointSpace?
  }
  fileprivate struct State {
    var mappings = MappingList()
    /// Endpoints that may have cached some of the mappings. Weak: an endpoint that is gone caches nothing.
    var endpoints: [WeakEndpoint] = []
    var faults: [FaultRecord] = []
    var faultCount: UInt64 = 0
  }
  public let fence = TranslationFence()
  public let memory: GuestMemory
  /// What queues that use the domain itself have looked up; filled from the mappings, emptied before them.
  private let cache = TranslationTable()
  private let state = Mutex(State())
  private let lookUpLedger = LookUpStatistics()
  /// Mappings that the domain takes at most.
  public let maxMappings: Int
  private let onFault: (@Sendable (DMAFault, RequesterID) -> Void)?
  static var keptFaults: Int { 64 }

  /// An empty domain over `memory`.
  ///
  /// - Parameter onFault: called for each fault of an attached endpoint, on queue threads; it must not wait for them.
  public init(
    _ memory: GuestMemory, maxMappings: Int = 1 << 20, onFault: (@Sendable (DMAFault, RequesterID) -> Void)? = nil
  ) {
    self.memory = memory
    self.maxMappings = maxMappings
    self.onFault = onFault
    memory.register(fence, cache: cache)
  }

  /// Mappings in force.
  public var mappings: Int { state.withLock { $0.mappings.count } }
  /// Every mapping in force, ascending: what a saved state has to hold of a domain (R139).
  public var runs: [GuestRun] { state.withLock { $0.mappings.all }.map(GuestRun.init) }
  /// Bytes of device addresses that are mapped.
  public var byteCount: UInt64 { state.withLock { $0.mappings.byteCount } }
  /// Whether some byte of `first` through `last` is mapped.
  public func isMapped(from first: DMAAddress, through last: DMAAddress) -> Bool {
    first <= last && state.withLock { $0.mappings.overlaps(first.rawValue, last.rawValue) }
  }

  /// Whether a mapping lies only partly in `first` through `last`, so that an unmap would fail.
  public func splits(from first: DMAAddress, through last: DMAAddress) -> Bool {
    state.withLock { state in
      let (low, high) = (state.mappings.mapping(at: first.rawValue), state.mappings.mapping(at: last.rawValue))
      return (low?.first ?? first.rawValue) < first.rawValue || (high?.last ?? last.rawValue) > last.rawValue
    }
  }

  /// Why `count` bytes from `address` on, one or more, cannot be accessed so, at the first byte that cannot; nil: they
  /// can, in one mapping or several.
  public func fault(for access: DMAAccess, at address: DMAAddress, count: Int) -> DMAFault? {
    let (last, overflow) = address.rawValue.addingReportingOverflow(UInt64(max(count, 1) - 1))
    guard !overflow else { return DMAFault(address: address, access: access, reason: .unmapped) }
    return state.withLock { state in
      var at = address.rawValue
      while true {
        guard let mapping = state.mappings.mapping(at: at) else {
          return DMAFault(address: DMAAddress(at), access: access, reason: .unmapped)
        }
        guard mapping.permissions.allows(access) else {
          return DMAFault(address: DMAAddress(at), access: access, reason: .permission)
        }
        guard mapping.last < last else { return nil }
        at = mapping.last + 1
      }
    }
  }

  // MARK: Mappings

  /// Makes `byteCount` bytes of guest memory visible from `address` on, to all endpoints at once. Guest memory need not
  /// exist yet: until it does, accesses fault.
  public func map(
    _ address: DMAAddress, byteCount: UInt64, to guest: GuestAddress, permissions: DMAPermissions
  ) throws(DomainError) {
    let mask = TranslationTable.granule - 1
    guard byteCount > 0, byteCount & mask == 0, address.rawValue & mask == 0, guest.rawValue & mask == 0,
      address.rawValue <= UInt64.max - (byteCount - 1), guest.rawValue <= UInt64.max - (byteCount - 1)
    else { throw .range }
    let new = Mapping(
      first: address.rawValue, last: address.rawValue + (byteCount - 1), guest: guest.rawValue, permissions: permissions
    )
    let error: DomainError? = state.withLock { state in
      guard state.mappings.count < maxMappings else { return .full }
      return state.mappings.insert(new) ? nil : .overlap
    }
    if let error { throw error }
  }

  /// Removes the mappings inside `first` through `last`. Holes are fine; a mapping that is only partly inside makes the
  /// call fail and change nothing. Returns how many went, when no endpoint uses them any more.
  @discardableResult public func unmap(from first: DMAAddress, through last: DMAAddress) throws(DomainError) -> Int {
    guard first <= last else { throw .range }
    let (count, endpoints): (Int?, [EndpointSpace]) = state.withLock { state in
      let count = state.mappings.remove(first.rawValue, last.rawValue)
      guard let count, count > 0 else { return (count, []) }
      // Under the same lock as translate(_:for:waking:) fills the cache: no look-up can put back what goes.
      cache.remove(from: first.rawValue, through: last.rawValue)
      return (count, state.endpoints.compactMap(\.endpoint))
    }
    guard let count else { throw .split }
    if count > 0 {
      for endpoint in endpoints { endpoint.invalidate(from: first, through: last) }
      fence.drain(from: first.rawValue, through: last.rawValue)
    }
    return count
  }

  /// Removes every mapping, and returns when no endpoint uses one any more.
  public func removeAll() {
    let endpoints = state.withLock { state in
      state.mappings.removeAll()
      cache.remove(from: 0, through: .max)
      return state.endpoints.compactMap(\.endpoint)
    }
    for endpoint in endpoints { endpoint.invalidate(from: DMAAddress(0), through: DMAAddress(.max)) }
    fence.drain()
  }

  // MARK: Endpoints

  /// Endpoints attached now.
  public var endpoints: [EndpointSpace] { state.withLock { $0.endpoints.compactMap(\.endpoint) } }

  /// Routes an endpoint through this domain, whose mappings it sees at once. It has left every other domain when this
  /// returns.
  public func attach(_ endpoint: EndpointSpace) {
    let old = endpoint.route
    state.withLock { state in
      state.endpoints.removeAll { $0.endpoint == nil || $0.endpoint === endpoint }
      state.endpoints.append(WeakEndpoint(endpoint: endpoint))
    }
    endpoint.setRoute(.translated(self))
    if case .translated(let translation) = old, let domain = translation as? Domain, domain !== self {
      domain.forget(endpoint)
    }
  }

  /// Routes an endpoint elsewhere, and returns when nothing uses this domain through it any more.
  public func detach(_ endpoint: EndpointSpace, to route: EndpointSpace.Route) {
    endpoint.setRoute(route)
    forget(endpoint)
  }

  private func forget(_ endpoint: EndpointSpace) {
    state.withLock { $0.endpoints.removeAll { $0.endpoint == nil || $0.endpoint === endpoint } }
  }

  public func lookUp(
    _ address: DMAAddress, for access: DMAAccess, by requester: RequesterID
  ) throws(DMAFault) -> GuestRun {
    guard let found = state.withLock({ $0.mappings.mapping(at: address.rawValue) }) else {
      throw DMAFault(address: address, access: access, reason: .unmapped)
    }
    return GuestRun(found)
  }

  public func report(_ fault: DMAFault, by requester: RequesterID) {
    state.withLock { $0.keep(FaultRecord(fault: fault, requester: requester)) }
    onFault?(fault, requester)
  }

  /// The last faults, oldest first: at most 64 are kept.
  public var faultRecords: [FaultRecord] { state.withLock { $0.faults } }
  /// What was refused last, oldest first: at most 64 are kept.
  public var faults: [DMAFault] { faultRecords.map(\.fault) }
  /// Faults so far, those not kept included.
  public var faultCount: UInt64 { state.withLock { $0.faultCount } }
}

extension GuestRun {
  init(_ mapping: Mapping) {
    self.init(
      first: DMAAddress(mapping.first), last: DMAAddress(mapping.last), guest: GuestAddress(mapping.guest),
      permissions: mapping.permissions)
  }
}

extension Domain: DMASpace {
  public var table: TranslationTable? { cache }
  public var dirtyLog: DirtyLog? { memory.dirtyLog }
  public var remote: (any RemoteMemory)? { memory.remote }
  /// Look-ups that a queue answered itself, and those that came here.
  public var lookUps: LookUpStatistics.Sum { lookUpLedger.sum }
  public var ledger: LookUpStatistics? { lookUpLedger }

  public func translate(
    _ address: DMAAddress, for access: DMAAccess, waking waiter: (any TranslationWaiter)?
  ) throws(DMAInterruption) -> HostRun {
    let result: Result<HostRun, DMAInterruption> = state.withLock { state in
      func refused(_ reason: DMAFault.Reason) -> Result<HostRun, DMAInterruption> {
        .failure(.fault(DMAFault(address: address, access: access, reason: reason)))
      }
      guard let mapping = state.mappings.mapping(at: address.rawValue) else { return refused(.unmapped) }
      guard mapping.permissions.allows(access) else { return refused(.permission) }
      guard let run = memory.run(behind: GuestRun(mapping), around: address) else { return refused(.unmapped) }
      // A run that is not made of whole pages stays with the queue that asked.
      _ = cache.insert(run)
      return .success(run)
    }
    return try result.get()
  }

  public func report(_ fault: DMAFault) {
    state.withLock { $0.keep(FaultRecord(fault: fault, requester: nil)) }
  }
}

extension Domain.State {
  fileprivate mutating func keep(_ record: Domain.FaultRecord) {
    if faults.count == Domain.keptFaults { faults.removeFirst() }
    faults.append(record)
    faultCount &+= 1
  }
}
