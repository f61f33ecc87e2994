public import DMA

/// What turns device addresses into guest-physical ones: a domain's mappings, or a walk of page tables in guest memory.
public protocol AddressTranslation: AnyObject, Sendable {
  /// What is around `address` for this requester. Called on queue threads under the endpoint's lock: it may lock, must
  /// not wait, and must not call the endpoint.
  func lookUp(_ address: DMAAddress, for access: DMAAccess, by requester: RequesterID) throws(DMAFault) -> GuestRun
  /// Called for a fault that ended an access of the requester, once per access (R092), on queue threads; must not wait
  /// for them.
  func report(_ fault: DMAFault, by requester: RequesterID)
}

/// The platform's unit that decides what each requester reaches. Called from control threads.
public protocol IOMMU: AnyObject, Sendable {
  /// Takes charge of an endpoint: from now on this unit alone routes it. Called when a function appears behind the
  /// unit, when the unit appears in front of functions that are there already (R032), and when a requester's number has
  /// changed.
  func adopt(_ endpoint: EndpointSpace)
  /// Gives an endpoint up, whose function has gone or gets another number; the endpoint is blocked afterwards.
  func release(_ endpoint: EndpointSpace)
}
