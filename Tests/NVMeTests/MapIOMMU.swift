import DMA
import DriverDMA
import IOMMUInterface
import Synchronization

/// An IOMMU for one function, and its driver at once: pages mapped and unmapped one by one.
final class MapIOMMU: IOMMU, AddressTranslation, IOMMUDomain {
  private struct State {
    var pages: [UInt64: (guest: UInt64, permissions: DMAPermissions)] = [:]
    var faults: [DMAFault] = []
    var lookUps = 0
    var endpoint: EndpointSpace?
  }
  private let state = Mutex(State())

  var faults: [DMAFault] { state.withLock { $0.faults } }
  var lookUps: Int { state.withLock { $0.lookUps } }

  func map(_ address: DMAAddress, to guest: GuestAddress, count: UInt64, permissions: DMAPermissions) {
    state.withLock { state in
      for at in stride(from: 0, to: count, by: 4096) {
        state.pages[(address.rawValue + at) / 4096] = (guest.rawValue + at, permissions)
      }
    }
  }

  /// Returns when nothing uses it any more.
  func unmap(_ address: DMAAddress, count: UInt64) {
    let endpoint = state.withLock { state in
      for at in stride(from: 0, to: count, by: 4096) { state.pages[(address.rawValue + at) / 4096] = nil }
      return state.endpoint
    }
    endpoint?.invalidate(from: address, through: DMAAddress(address.rawValue + (count - 1)))
  }

  func adopt(_ endpoint: EndpointSpace) {
    state.withLock { $0.endpoint = endpoint }
    endpoint.setRoute(.translated(self))
  }

  func release(_ endpoint: EndpointSpace) {
    state.withLock { $0.endpoint = nil }
    endpoint.setRoute(.blocked(.stopped))
  }

  func lookUp(_ address: DMAAddress, for access: DMAAccess, by requester: RequesterID) throws(DMAFault) -> GuestRun {
    let page = state.withLock { state in
      state.lookUps += 1
      return state.pages[address.rawValue / 4096]
    }
    guard let page else { throw DMAFault(address: address, access: access, reason: .unmapped) }
    let first = address.rawValue & ~4095
    return GuestRun(
      first: DMAAddress(first), last: DMAAddress(first | 4095), guest: GuestAddress(page.guest),
      permissions: page.permissions)
  }

  func report(_ fault: DMAFault, by requester: RequesterID) { state.withLock { $0.faults.append(fault) } }
}
