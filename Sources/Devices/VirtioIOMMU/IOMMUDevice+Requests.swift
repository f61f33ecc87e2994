internal import DMA
internal import IOMMUInterface
internal import Synchronization
internal import Virtio

/// What a driver asks for (§5.13.6). A request that takes something away returns when no endpoint uses it any more
/// (R159).
extension IOMMUDevice {
  /// Whether the driver may use a type of request: what is not negotiated is not recognized.
  func serves(_ type: IOMMURequestType) -> Bool {
    switch type {
    case .map, .unmap: state.withLock { $0.negotiated?.contains(.iommuMapUnmap) == true }
    default: true
    }
  }

  /// Does what a request asks for. Of a PROBE it only says whether there is such an endpoint.
  func perform(_ request: IOMMURequest) -> IOMMUStatus {
    state.withLock { state in
      switch request {
      case .attach(let domain, let endpoint, let flags, let reserved):
        reserved == 0 ? attach(domain, endpoint, flags, &state) : .invalid
      case .detach(let domain, let endpoint): detach(domain, endpoint, &state)
      case .map(let domain, let first, let last, let physical, let flags):
        map(domain, first, last, physical, flags, &state)
      case .unmap(let domain, let first, let last, let reserved):
        // Nothing is unmapped then, which is one of the two things that may happen (§5.13.6.6.2).
        reserved == 0 ? unmap(domain, first, last, &state) : .invalid
      case .probe(let endpoint): requester(endpoint, state) == nil ? .noEntry : .ok
      }
    }
  }

  /// What a PROBE returns of an endpoint that there is.
  func properties(of endpoint: UInt32) -> [UInt8] {
    // That they fit was seen to when the device was made.
    IOMMUReservedMemory.properties(
      reserved(RequesterID(rawValue: UInt16(truncatingIfNeeded: endpoint))), count: Int(options.probeSize)) ?? []
  }

  private func requester(_ endpoint: UInt32, _ state: borrowing State) -> RequesterID? {
    guard let number = UInt16(exactly: endpoint), state.endpoints[RequesterID(rawValue: number)] != nil else {
      return nil
    }
    return RequesterID(rawValue: number)
  }

  func reserved(_ requester: RequesterID) -> [IOMMUReservedMemory] {
    options.reservedMemoryOf[requester] ?? options.reservedMemory
  }

  /// A domain with nothing in it.
  func makeDomain() -> Domain {
    let faults = faults
    return Domain(memory, maxMappings: options.maxMappingsPerDomain) { fault, requester in
      let reason: IOMMUFault.Reason = fault.reason == .unmapped || fault.reason == .permission ? .mapping : .unknown
      faults.report(IOMMUFault(fault, by: requester, reason: reason))
    }
  }

  /// Whether a mapping's addresses are ones that can be mapped, to where they are to lead (§5.13.6.5.2).
  func isMappable(_ first: UInt64, _ last: UInt64, _ physical: UInt64) -> Bool {
    let granule = options.pageSizeMask & (~options.pageSizeMask &+ 1)
    // All 2^64 bytes are one more than can be said in one mapping, and no physical address leads to the last of them.
    return last > first && last - first != .max && (first | physical | (last &+ 1)) & (granule - 1) == 0
      && options.inputRange.contains(first) && options.inputRange.contains(last)
      && !physical.addingReportingOverflow(last - first).overflow
  }

  private func attach(
    _ number: UInt32, _ endpoint: UInt32, _ flags: IOMMUAttachFlags, _ state: inout State
  ) -> IOMMUStatus {
    let known: IOMMUAttachFlags = state.negotiated?.contains(.iommuBypassConfig) == true ? .bypass : []
    guard known.isSuperset(of: flags) else { return .invalid }
    guard let requester = requester(endpoint, state), let attached = state.endpoints[requester] else { return .noEntry }
    guard options.domainRange.contains(number) else { return .range }
    let old = attached.domain
    let entry: DomainEntry
    if let there = state.domains[number] {
      guard (there.domain == nil) == flags.contains(.bypass) else { return .invalid }
      if old == number { return .ok }
      if let domain = there.domain {
        // What is mapped there would shadow what the endpoint keeps for itself.
        for memory in reserved(requester)
        where domain.isMapped(from: DMAAddress(memory.range.lowerBound), through: DMAAddress(memory.range.upperBound)) {
          return .unsupported
        }
      }
      entry = there
    } else {
      // A domain that ends with this makes room for the new one.
      let ends = old.flatMap { state.domains[$0] }?.endpoints.count == 1
      guard state.domains.count - (ends ? 1 : 0) < options.maxDomains else { return .noMemory }
      entry = DomainEntry(domain: flags.contains(.bypass) ? nil : makeDomain())
      state.domains[number] = entry
    }
    state.domains[number]?.endpoints.insert(requester)
    state.endpoints[requester]?.domain = number
    let before = old.flatMap { state.domains[$0] }
    for space in attached.spaces { turn(space, from: before, to: entry, state) }
    if let old { leave(old, requester, &state) }
    return .ok
  }

  private func detach(_ number: UInt32, _ endpoint: UInt32, _ state: inout State) -> IOMMUStatus {
    guard let requester = requester(endpoint, state) else { return .noEntry }
    guard state.endpoints[requester]?.domain == number else { return .invalid }
    detach(requester, &state)
    return .ok
  }

  private func map(
    _ number: UInt32, _ first: UInt64, _ last: UInt64, _ physical: UInt64, _ flags: IOMMUMapFlags, _ state: inout State
  ) -> IOMMUStatus {
    var known: IOMMUMapFlags = [.read, .write]
    if state.negotiated?.contains(.iommuMMIO) == true { known.insert(.mmio) }
    guard known.isSuperset(of: flags) else { return .invalid }
    guard let entry = state.domains[number] else { return .noEntry }
    guard let domain = entry.domain else { return .invalid }
    guard isMappable(first, last, physical) else { return .range }
    for requester in entry.endpoints {
      for memory in reserved(requester) where memory.range.overlaps(first...last) { return .invalid }
    }
    guard state.mappings < options.maxMappings else { return .noMemory }
    var permissions: DMAPermissions = []
    if flags.contains(.read) { permissions.insert(.read) }
    if flags.contains(.write) { permissions.insert(.write) }
    do throws(DomainError) {
      try domain.map(
        DMAAddress(first), byteCount: last - first + 1, to: GuestAddress(physical), permissions: permissions)
    } catch {
      switch error {
      case .overlap: return .invalid
      case .full: return .noMemory
      case .range, .split: return .range
      }
    }
    state.mappings += 1
    return .ok
  }

  private func unmap(_ number: UInt32, _ first: UInt64, _ last: UInt64, _ state: inout State) -> IOMMUStatus {
    guard let entry = state.domains[number] else { return .noEntry }
    guard let domain = entry.domain else { return .invalid }
    do throws(DomainError) {
      state.mappings -= try domain.unmap(from: DMAAddress(first), through: DMAAddress(last))
      return .ok
    } catch {
      return .range
    }
  }
}
