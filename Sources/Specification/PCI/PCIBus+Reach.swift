internal import DMA
import IOMMUInterface
import Synchronization

/// What each function reaches: bus numbers, bus mastering and the IOMMU, brought to the endpoints.
extension PCIBus {
  fileprivate struct Change {
    var endpoint: EndpointSpace
    /// The function's, whose translated space `endpoint` is; nil: several functions share it.
    var owner: DMAEndpoint?
    var isBehindIOMMU: Bool
    var requester: RequesterID?
    var isOpen: Bool
    var wasOpen: Bool
    var old: (any IOMMU)?
    var new: (any IOMMU)?
    var wasBlocked: Bool
    var isBlocked: Bool
    /// Whether the endpoint has to be given to its IOMMU anew.
    var isMoved: Bool
  }

  /// Reads what the guest has programmed, and updates the routes.
  ///
  /// - Parameter function: one that is reset first, by itself (PCI Express base specification, 6.6.2). Its mappings are
  ///   the IOMMU's, and stay (R061).
  func refresh(resetting function: (any PCIFunction)? = nil) {
    changes.withLock { _ in
      function?.reset()
      let held: [any PCIFunction] = topology.withLock { topology in
        var resetting: Set<Int> = []
        for i in topology.plugged.indices {
          let old = topology.plugged[i].decoding.bridge?.isResetting ?? false
          topology.plugged[i].decoding = topology.plugged[i].function.configuration.decoding
          if !old, topology.plugged[i].decoding.bridge?.isResetting == true { resetting.insert(topology.plugged[i].id) }
        }
        return topology.plugged.filter { topology.isBelow($0, resetting) }.map(\.function)
      }
      // A secondary bus reset reaches every function behind the bridge.
      for function in held { function.reset() }
      apply(topology.withLock { $0.plan(lookingAgain: !held.isEmpty) })
    }
  }

  private func apply(_ plan: [Change]) {
    // What closes comes first, then numbers that are given up, then numbers that are taken.
    for change in plan where change.wasOpen && !change.isOpen { change.setOpen(false) }
    for change in plan {
      if let old = change.old, change.isMoved { old.release(change.endpoint) }
    }
    for change in plan {
      let endpoint = change.endpoint
      change.owner?.setBehindIOMMU(change.isBehindIOMMU)
      if let requester = change.requester {
        if let owner = change.owner {
          owner.requester = requester
        } else if endpoint.requester != requester {
          endpoint.requester = requester
        }
      }
      if change.isBlocked, !change.wasBlocked || change.old != nil { endpoint.setRoute(.blocked(.unmapped)) }
      if change.new == nil, !change.isBlocked, change.old != nil || change.wasBlocked { endpoint.setRoute(.physical) }
      if let new = change.new, change.isMoved { new.adopt(endpoint) }
    }
    for change in plan where !change.wasOpen && change.isOpen { change.setOpen(true) }
  }
}

extension PCIBus.Change {
  fileprivate func setOpen(_ isOpen: Bool) {
    if let owner { owner.setOpen(isOpen) } else { endpoint.setOpen(isOpen) }
  }
}

extension PCIBus.Topology {
  fileprivate func isBelow(_ one: PCIBus.Plugged, _ bridges: Set<Int>) -> Bool {
    var up = one.bridge
    while let id = up {
      if bridges.contains(id) { return true }
      up = with(id: id)?.bridge
    }
    return false
  }

  /// What has to change, remembered as done.
  fileprivate mutating func plan(lookingAgain: Bool) -> [PCIBus.Change] {
    if lookingAgain { for i in plugged.indices { plugged[i].decoding = plugged[i].function.configuration.decoding } }
    var taken: Set<RequesterID> = []
    // Two under one number, as a guest may program them: the second reaches nothing rather than the first's memory.
    func claim(_ number: RequesterID?) -> RequesterID? { number.flatMap { taken.insert($0).inserted ? $0 : nil } }
    var plan: [PCIBus.Change] = []
    for i in plugged.indices {
      let one = plugged[i]
      let translates = iommu != nil && !one.bypassesIOMMU
      plugged[i].isOpen = isBusMaster(one)
      // A function whose bridge speaks for it follows the bridge's endpoint: for itself there is only the gate.
      let follows = one.bypassesIOMMU ? nil : conventional(one.bridge)
      let number = follows.map { sharedNumber(of: $0) } ?? claim(requester(of: one))
      let isOwn = translates && follows == nil
      plugged[i].adopter = isOwn && number != nil ? iommu : nil
      plugged[i].isBlocked = isOwn && number == nil
      plan.append(
        PCIBus.Change(
          endpoint: one.endpoint.translatedSpace, owner: one.endpoint, isBehindIOMMU: translates, requester: number,
          isOpen: plugged[i].isOpen,
          wasOpen: one.isOpen, old: one.adopter, new: plugged[i].adopter, wasBlocked: one.isBlocked,
          isBlocked: plugged[i].isBlocked,
          isMoved: one.adopter !== plugged[i].adopter || number.map { $0 != one.endpoint.requester } ?? false))
      if let shared = one.shared { plan.append(share(i, shared, claim(sharedNumber(of: one)))) }
    }
    return plan
  }

  /// What has to change about the endpoint that a bridge's functions share.
  private mutating func share(_ index: Int, _ old: PCIBus.Shared, _ number: RequesterID?) -> PCIBus.Change {
    let translates = iommu != nil
    let new = PCIBus.Shared(
      endpoint: old.endpoint, adopter: number != nil ? iommu : nil, isBlocked: translates && number == nil)
    plugged[index].shared = new
    return PCIBus.Change(
      endpoint: old.endpoint, owner: nil, isBehindIOMMU: translates, requester: number, isOpen: true, wasOpen: true,
      old: old.adopter,
      new: new.adopter, wasBlocked: old.isBlocked, isBlocked: new.isBlocked,
      isMoved: old.adopter !== new.adopter || number.map { $0 != old.endpoint.requester } ?? false)
  }
}
