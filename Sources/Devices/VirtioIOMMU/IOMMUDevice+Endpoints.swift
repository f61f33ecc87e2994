internal import DMA
public import IOMMUInterface
internal import Synchronization

/// Endpoints come, go, and are turned one way or another. Each call returns when nothing begun before it is still under
/// way.
extension IOMMUDevice {
  public func adopt(_ endpoint: EndpointSpace) {
    let requester = endpoint.requester
    if requester == options.ownRequester { return endpoint.setRoute(.physical) }
    state.withLock { state in
      var entry = state.endpoints[requester] ?? Endpoint()
      guard !entry.spaces.contains(where: { $0 === endpoint }) else { return }
      entry.spaces.append(endpoint)
      state.endpoints[requester] = entry
      turn(endpoint, from: nil, to: entry.domain.flatMap { state.domains[$0] }, state)
    }
  }

  public func release(_ endpoint: EndpointSpace) {
    state.withLock { state in
      // Not by its number, which may have changed since: the entry must not stay here for ever.
      guard let requester = state.endpoints.first(where: { $1.spaces.contains { $0 === endpoint } })?.key else {
        return endpoint.setRoute(.blocked(.stopped))
      }
      // Before anything else: it must not be in bypass mode for a moment because its domain has ended.
      if let domain = state.endpoints[requester]?.domain.flatMap({ state.domains[$0]?.domain }) {
        domain.detach(endpoint, to: .blocked(.stopped))
      } else {
        endpoint.setRoute(.blocked(.stopped))
      }
      state.endpoints[requester]?.spaces.removeAll { $0 === endpoint }
      guard state.endpoints[requester]?.spaces.isEmpty == true else { return }
      detach(requester, &state)
      state.endpoints[requester] = nil
    }
  }

  /// Ends an attachment; a domain without endpoints ends with it.
  func detach(_ requester: RequesterID, _ state: inout State) {
    guard let endpoint = state.endpoints[requester], let number = endpoint.domain, let entry = state.domains[number]
    else { return }
    // One that a saved state spoke of, and that never came, is forgotten with its domain.
    state.endpoints[requester] = endpoint.spaces.isEmpty ? nil : Endpoint(spaces: endpoint.spaces)
    for space in endpoint.spaces { turn(space, from: entry, to: nil, state) }
    leave(number, requester, &state)
  }

  /// Takes an endpoint out of a domain's list, and the domain out of the world when it was the last.
  func leave(_ number: UInt32, _ requester: RequesterID, _ state: inout State) {
    guard state.domains[number]?.endpoints.remove(requester) != nil, let entry = state.domains[number],
      entry.endpoints.isEmpty
    else { return }
    state.mappings -= entry.domain?.mappings ?? 0
    state.domains[number] = nil
  }

  /// Turns a space from where it is to a domain, or to where endpoints without one are.
  func turn(_ space: EndpointSpace, from old: DomainEntry?, to new: DomainEntry?, _ state: borrowing State) {
    if let domain = new?.domain { return domain.attach(space) }
    let route: EndpointSpace.Route = new != nil || bypassesUnattached(state) ? .physical : .translated(nowhere)
    if let domain = old?.domain { domain.detach(space, to: route) } else { space.setRoute(route) }
  }

  /// Turns every endpoint that has no domain to where such endpoints belong now.
  func routeUnattached(_ state: borrowing State) {
    for endpoint in state.endpoints.values where endpoint.domain == nil {
      for space in endpoint.spaces { turn(space, from: nil, to: nil, state) }
    }
  }
}
