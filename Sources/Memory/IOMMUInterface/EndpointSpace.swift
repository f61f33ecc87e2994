public import DMA
import Synchronization

/// What one requester can reach: a switch between nothing, physical memory, and what an IOMMU translates, in front of
/// which sits the requester's bus master enable bit.
///
/// It belongs to the function and stays the same for as long as the function lives; an ``IOMMU`` that has adopted it
/// changes the route. Every change returns only when all accesses that began before it have ended, I/O in flight
/// included; so call it from a control thread, never from a queue's.
public final class EndpointSpace: DMASpace {
  /// Where addresses lead.
  public enum Route: Sendable {
    /// Nowhere, and the fault is not reported: the function is gone. An IOMMU that has to report what an unattached
    /// endpoint tries routes it through a translation that refuses everything.
    case blocked(DMAFault.Reason)
    /// They are guest-physical.
    case physical
    /// Where an IOMMU's domain or page tables say.
    case translated(any AddressTranslation)
  }
  private struct State {
    var requester: RequesterID
    var route = Route.physical
    var isOpen = false
    var faults: UInt64 = 0
  }
  public let fence = TranslationFence()
  public let memory: GuestMemory
  private let cache: TranslationTable
  private let state: Mutex<State>
  private let lookUps = LookUpStatistics()
  /// Endpoints under the same number. Held while they change, so that they change together.
  private let aliases = Mutex<[EndpointSpace]>([])

  /// An endpoint over `memory`, physical until an IOMMU adopts it.
  ///
  /// - Parameters:
  ///   - isOpen: whether bus mastering is enabled from the start, as for a device that is no PCI function.
  ///   - maxTableNodes: 4 KiB each, of the table in which queues look.
  public init(_ memory: GuestMemory, requester: RequesterID, isOpen: Bool = false, maxTableNodes: Int = 1 << 15) {
    self.memory = memory
    cache = TranslationTable(maxNodes: maxTableNodes)
    state = Mutex(State(requester: requester, isOpen: isOpen))
    memory.register(fence, cache: cache)
  }

  public var table: TranslationTable? { cache }
  public var dirtyLog: DirtyLog? { memory.dirtyLog }
  public var remote: (any RemoteMemory)? { memory.remote }
  public var ledger: LookUpStatistics? { lookUps }

  /// Its number on the bus now. Set it only between an IOMMU's `release` and `adopt`.
  public var requester: RequesterID {
    get { state.withLock { $0.requester } }
    set {
      aliases.withLock { aliases in
        state.withLock { $0.requester = newValue }
        for alias in aliases { alias.requester = newValue }
      }
    }
  }
  /// Where its addresses lead now, bus mastering aside.
  public var route: Route { state.withLock { $0.route } }
  /// Whether bus mastering is enabled: without it nothing is reachable (R039).
  public var isOpen: Bool { state.withLock { $0.isOpen } }
  /// Look-ups that queues answered themselves, those that came here, and accesses refused, since the endpoint was made.
  public var counts: (hits: UInt64, misses: UInt64, faults: UInt64) {
    let sum = lookUps.sum
    return (sum.hits, sum.misses, state.withLock { $0.faults })
  }

  /// Turns the switch.
  public func setRoute(_ route: Route) {
    aliases.withLock { aliases in
      change { $0.route = route }
      for alias in aliases { alias.setRoute(route) }
    }
  }
  /// Sets the bus master enable bit.
  public func setOpen(_ isOpen: Bool) { change { $0.isOpen = isOpen } }

  /// Drops what is remembered of the bytes `first` through `last`, and returns when nothing uses it any more. The IOMMU
  /// calls it after it has taken a mapping away or narrowed it.
  public func invalidate(from first: DMAAddress, through last: DMAAddress) {
    let isFull = state.withLock { _ in
      cache.remove(from: first.rawValue, through: last.rawValue)
      return cache.isFull
    }
    // A driver that maps here and there, and never comes back to an address, would otherwise leave the table full for
    // ever.
    if isFull {
      cache.removeAll(drained: fence, used: TranslationFence.range(from: first.rawValue, through: last.rawValue))
    } else {
      fence.drain(from: first.rawValue, through: last.rawValue)
    }
    aliases.withLock { aliases in
      for alias in aliases { alias.invalidate(from: first, through: last) }
    }
  }

  // MARK: Several under one number

  /// Another requester's transactions arrive under this one's number, so an IOMMU cannot tell them apart (R081): from
  /// now on the other endpoint has this one's number and route, and is invalidated with it. It keeps its own bus master
  /// enable bit.
  public func addAlias(_ endpoint: EndpointSpace) {
    aliases.withLock { aliases in
      aliases.append(endpoint)
      endpoint.requester = requester
      endpoint.setRoute(route)
    }
  }

  /// Ends ``addAlias(_:)``: the other keeps its route until it is given one.
  public func removeAlias(_ endpoint: EndpointSpace) { aliases.withLock { $0.removeAll { $0 === endpoint } } }

  private func change(_ body: (inout State) -> Void) {
    // Translations found from here on are new, even if the table loses them again.
    state.withLock { body(&$0) }
    cache.removeAll(drained: fence)
  }

  public func translate(
    _ address: DMAAddress, for access: DMAAccess, waking waiter: (any TranslationWaiter)?
  ) throws(DMAInterruption) -> HostRun {
    let result: Result<HostRun, DMAFault> = state.withLock { state in
      guard state.isOpen else {
        return .failure(DMAFault(address: address, access: access, reason: .busMasterDisabled))
      }
      let run: GuestRun
      switch state.route {
      case .blocked(let reason): return .failure(DMAFault(address: address, access: access, reason: reason))
      case .physical:
        run = GuestRun(first: DMAAddress(0), last: DMAAddress(.max), guest: GuestAddress(0), permissions: .readWrite)
      case .translated(let translation):
        do throws(DMAFault) { run = try translation.lookUp(address, for: access, by: state.requester) } catch {
          return .failure(error)
        }
      }
      guard run.permissions.allows(access) else {
        return .failure(DMAFault(address: address, access: access, reason: .permission))
      }
      guard let host = memory.run(behind: run, around: address) else {
        return .failure(DMAFault(address: address, access: access, reason: .unmapped))
      }
      // Under the lock that a change takes: what goes cannot be put back. A run not made of whole pages stays with the
      // queue.
      _ = cache.insert(host)
      return .success(host)
    }
    switch result {
    case .success(let run): return run
    case .failure(let fault): throw .fault(fault)
    }
  }

  public func report(_ fault: DMAFault) {
    let (route, requester) = state.withLock { state in
      state.faults &+= 1
      return (state.route, state.requester)
    }
    // A closed gate is the function's own doing: the IOMMU never saw the access.
    if fault.reason != .busMasterDisabled, case .translated(let translation) = route {
      translation.report(fault, by: requester)
    }
  }
}
