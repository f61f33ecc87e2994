import DMA
import Synchronization

/// Who reaches what: bus numbers, bus mastering and the IOMMU, brought to the endpoints.
extension PCIBus {
  fileprivate struct Change {
    var master: BusMaster
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

  /// Looks at what the guest has programmed, and makes it so.
  ///
  /// - Parameter function: one that is reset first, by itself (PCI Express base specification, 6.6.2). Its mappings are the
  ///   IOMMU's, and stay (R061).
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
      if let old = change.old, change.isMoved { old.release(change.master.endpoint) }
    }
    for change in plan {
      let endpoint = change.master.endpoint
      change.master.setBehindIOMMU(change.new != nil || change.isBlocked)
      if let requester = change.requester {
        if endpoint.requester != requester { endpoint.requester = requester }
        if change.master.direct.requester != requester { change.master.direct.requester = requester }
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
    master.endpoint.setOpen(isOpen)
    master.direct.setOpen(isOpen)
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
    var plan: [PCIBus.Change] = []
    for i in plugged.indices {
      let one = plugged[i]
      var requester = requester(of: one)
      // Two functions under one number, as a guest may program them: the second reaches nothing rather than the first's memory.
      if let number = requester, !taken.insert(number).inserted { requester = nil }
      let translates = iommu != nil && !one.bypassesIOMMU
      plugged[i].adopter = translates && requester != nil ? iommu : nil
      plugged[i].isBlocked = translates && requester == nil
      plugged[i].isOpen = isBusMaster(one)
      plan.append(
        PCIBus.Change(
          master: one.master, requester: requester, isOpen: plugged[i].isOpen, wasOpen: one.isOpen, old: one.adopter,
          new: plugged[i].adopter, wasBlocked: one.isBlocked, isBlocked: plugged[i].isBlocked,
          isMoved: one.adopter !== plugged[i].adopter || requester.map { $0 != one.master.requester } ?? false))
    }
    return plan
  }
}
