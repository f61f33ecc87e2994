public import DMA
public import DriverDMA
public import IOMMUInterface
import Synchronization

/// The least that is an IOMMU: for each requester a list of mappings made by hand, and nothing for requesters without
/// one.
public final class PageIOMMU: IOMMU, AddressTranslation {
  private struct State {
    var endpoints: [RequesterID: EndpointSpace] = [:]
    var mappings: [RequesterID: [GuestRun]] = [:]
    var lookUps: [RequesterID: Int] = [:]
    var faults: [(requester: RequesterID, fault: DMAFault)] = []
    var adoptions: [RequesterID] = []
    var releases: [RequesterID] = []
  }
  private let state = Mutex(State())

  public init() {}

  /// Requesters in the order in which they were adopted, those that have gone again too.
  public var adoptions: [RequesterID] { state.withLock { $0.adoptions } }
  public var releases: [RequesterID] { state.withLock { $0.releases } }
  /// The requesters that are attached now.
  public var requesters: [RequesterID] { state.withLock { $0.endpoints.keys.sorted() } }
  public var faults: [(requester: RequesterID, fault: DMAFault)] { state.withLock { $0.faults } }
  public func lookUps(by requester: RequesterID) -> Int { state.withLock { $0.lookUps[requester] ?? 0 } }

  /// Lets a requester reach `byteCount` bytes at `guest` under `address`.
  public func map(
    _ requester: RequesterID, _ address: DMAAddress, byteCount: UInt64, to guest: GuestAddress,
    _ permissions: DMAPermissions = .readWrite
  ) {
    let run = GuestRun(
      first: address, last: DMAAddress(address.rawValue + (byteCount - 1)), guest: guest, permissions: permissions)
    state.withLock { $0.mappings[requester, default: []].append(run) }
  }

  /// Takes everything of a requester away, and returns when nothing uses it any more.
  public func unmapAll(_ requester: RequesterID) {
    let endpoint = state.withLock { state in
      state.mappings[requester] = nil
      return state.endpoints[requester]
    }
    endpoint?.invalidate(from: DMAAddress(0), through: DMAAddress(.max))
  }

  /// Takes a range of a requester away, out of larger mappings too, and returns when nothing uses it any more.
  public func unmap(_ requester: RequesterID, _ address: DMAAddress, byteCount: UInt64) {
    let last = DMAAddress(address.rawValue + (byteCount - 1))
    let endpoint = state.withLock { state in
      state.mappings[requester] = state.mappings[requester]?.flatMap { run -> [GuestRun] in
        guard run.first <= last, address <= run.last else { return [run] }
        var (before, after) = (run, run)
        before.last = DMAAddress(address.rawValue &- 1)
        after.first = DMAAddress(last.rawValue &+ 1)
        after.guest = GuestAddress(run.guest.rawValue &+ (after.first.rawValue &- run.first.rawValue))
        return (run.first < address ? [before] : []) + (last < run.last ? [after] : [])
      }
      return state.endpoints[requester]
    }
    endpoint?.invalidate(from: address, through: last)
  }

  /// Puts other mappings in the place of all that a requester has, and returns when nothing uses the old ones any more.
  public func replaceAll(_ requester: RequesterID, with mappings: [GuestRun]) {
    let endpoint = state.withLock { state in
      state.mappings[requester] = mappings
      return state.endpoints[requester]
    }
    endpoint?.invalidate(from: DMAAddress(0), through: DMAAddress(.max))
  }

  public func adopt(_ endpoint: EndpointSpace) {
    let requester = endpoint.requester
    state.withLock { state in
      precondition(state.endpoints[requester] == nil, "two endpoints under one number")
      state.endpoints[requester] = endpoint
      state.adoptions.append(requester)
    }
    endpoint.setRoute(.translated(self))
  }

  public func release(_ endpoint: EndpointSpace) {
    let requester = endpoint.requester
    state.withLock { state in
      precondition(state.endpoints[requester] === endpoint, "an endpoint is given up that is not here")
      state.endpoints[requester] = nil
      state.releases.append(requester)
    }
    endpoint.setRoute(.blocked(.stopped))
  }

  public func lookUp(
    _ address: DMAAddress, for access: DMAAccess, by requester: RequesterID
  ) throws(DMAFault) -> GuestRun {
    let run: GuestRun? = state.withLock { state in
      state.lookUps[requester, default: 0] += 1
      return state.mappings[requester]?.first { $0.first <= address && address <= $0.last }
    }
    guard let run else { throw DMAFault(address: address, access: access, reason: .unmapped) }
    return run
  }

  public func report(_ fault: DMAFault, by requester: RequesterID) {
    state.withLock { $0.faults.append((requester, fault)) }
  }
}

/// What one requester has of a ``PageIOMMU``, as a driver that maps and unmaps.
public final class PageDomain: IOMMUDomain {
  public let unit = PageIOMMU()
  private let requester: RequesterID
  public init(of requester: RequesterID) { self.requester = requester }

  public var faults: [DMAFault] { unit.faults.map(\.fault) }
  public var lookUps: Int { unit.lookUps(by: requester) }
  public func map(_ address: DMAAddress, to guest: GuestAddress, count: UInt64, permissions: DMAPermissions) {
    unit.map(requester, address, byteCount: count, to: guest, permissions)
  }
  public func unmap(_ address: DMAAddress, count: UInt64) { unit.unmap(requester, address, byteCount: count) }
}
