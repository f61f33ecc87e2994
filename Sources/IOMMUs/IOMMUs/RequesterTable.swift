import IOMMUInterface

/// The endpoints of a unit that has an entry for each requester, and the entries that it remembers.
struct RequesterTable<Context: Sendable>: Sendable {
  private var endpoints: [RequesterID: EndpointSpace] = [:]
  private var contexts: [RequesterID: Context] = [:]

  /// The entry of a requester, if it is remembered.
  func context(of requester: RequesterID) -> Context? { contexts[requester] }

  /// Remembers an entry, but only of an endpoint that invalidations reach.
  mutating func remember(_ context: Context, of requester: RequesterID) {
    if endpoints[requester] != nil { contexts[requester] = context }
  }

  mutating func adopt(_ endpoint: EndpointSpace, as requester: RequesterID) {
    endpoints[requester] = endpoint
    contexts[requester] = nil
  }

  mutating func release(_ endpoint: EndpointSpace, as requester: RequesterID) {
    guard endpoints[requester] === endpoint else { return }
    endpoints[requester] = nil
    contexts[requester] = nil
  }

  /// The endpoints that `isConcerned` picks by number and entry; with `isContext` their entries are forgotten.
  mutating func concerned(isContext: Bool, _ isConcerned: (RequesterID, Context?) -> Bool) -> [EndpointSpace] {
    var found: [EndpointSpace] = []
    for (requester, endpoint) in endpoints where isConcerned(requester, contexts[requester]) {
      found.append(endpoint)
      if isContext { contexts[requester] = nil }
    }
    return found
  }
}
