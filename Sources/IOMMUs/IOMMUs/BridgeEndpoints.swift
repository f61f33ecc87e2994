import DMA
import IOMMUInterface
import Synchronization

/// The endpoints behind a unit that treats them all alike, and what it refused them.
final class BridgeEndpoints: Sendable {
  private struct State {
    var endpoints: [RequesterID: EndpointSpace] = [:]
    var faults: UInt64 = 0
  }
  private let state = Mutex(State())

  /// Accesses refused, of all endpoints.
  var faults: UInt64 { state.withLock { $0.faults } }
  func countFault() { state.withLock { $0.faults &+= 1 } }

  func adopt(_ endpoint: EndpointSpace, by translation: any AddressTranslation) {
    let requester = endpoint.requester
    state.withLock { $0.endpoints[requester] = endpoint }
    endpoint.setRoute(.translated(translation))
  }

  func release(_ endpoint: EndpointSpace) {
    let requester = endpoint.requester
    state.withLock { if $0.endpoints[requester] === endpoint { $0.endpoints[requester] = nil } }
    endpoint.setRoute(.blocked(.stopped))
  }

  /// Drops what every endpoint remembers of a range, and returns when nothing uses it.
  func invalidate(from first: UInt64, through last: UInt64) {
    for endpoint in state.withLock({ Array($0.endpoints.values) }) {
      endpoint.invalidate(from: DMAAddress(first), through: DMAAddress(last))
    }
  }
}
