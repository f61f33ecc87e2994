internal import DMA
internal import IOMMUInterface
internal import Synchronization
public import Virtio

/// Saving, and taking over what another machine saved.
extension IOMMUDevice {
  /// Domains, their mappings with permissions, attachments, what was negotiated, and the field `bypass` (R139). Reports
  /// of faults that no event buffer has taken stay behind. Call it while the request queue rests.
  public func saveState() -> [UInt8] {
    state.withLock { state in
      var saved = IOMMUState(
        bypassKind: bypassKind, bypass: bypass.load(ordering: .acquiring), negotiated: state.negotiated)
      for (number, entry) in state.domains.sorted(by: { $0.key < $1.key }) {
        saved.domains.append(
          IOMMUState.Domain(number: number, isBypass: entry.domain == nil, mappings: entry.domain?.runs ?? []))
      }
      for (requester, endpoint) in state.endpoints.sorted(by: { $0.key.rawValue < $1.key.rawValue }) {
        if let domain = endpoint.domain { saved.attachments.append((requester, domain)) }
      }
      return saved.bytes
    }
  }

  /// Takes over what ``saveState()`` of another device returned, before the devices behind it take over theirs (R139).
  /// Endpoints that are not here yet find their domain when they come. Returns when no endpoint uses what was here
  /// before.
  ///
  /// - Throws: why the bytes are no state of this device with its options: features, ranges and limits are checked as
  ///   requests are (R140).
  ///   Nothing has changed then.
  public func restoreState(_ bytes: [UInt8]) throws(DeviceError) {
    let saved = try IOMMUState(bytes)
    let domains = try check(saved)
    state.withLock { state in
      let old = (endpoints: state.endpoints, domains: state.domains)
      state.negotiated = saved.negotiated
      bypass.store(saved.bypass, ordering: .releasing)
      state.domains = domains
      state.mappings = saved.domains.reduce(0) { $0 + $1.mappings.count }
      state.endpoints = old.endpoints.filter { !$1.spaces.isEmpty }.mapValues { Endpoint(spaces: $0.spaces) }
      for (requester, number) in saved.attachments { state.endpoints[requester, default: Endpoint()].domain = number }
      faults.clear()
      for (requester, endpoint) in state.endpoints {
        let before = old.endpoints[requester]?.domain.flatMap { old.domains[$0] }
        for space in endpoint.spaces { turn(space, from: before, to: endpoint.domain.flatMap { domains[$0] }, state) }
      }
    }
  }

  private var bypassKind: UInt8 {
    switch options.bypass {
    case .never: 0
    case .configured: 1
    case .accepted: 2
    }
  }

  /// The domains of a state, made: what no request could have brought about is refused.
  private func check(_ saved: IOMMUState) throws(DeviceError) -> [UInt32: DomainEntry] {
    guard saved.bypassKind == bypassKind, !saved.bypass || bypassKind == 1 else {
      throw DeviceError("the IOMMU's state is from a device whose endpoints get into bypass mode in another way")
    }
    let negotiated = saved.negotiated ?? []
    guard features.isSuperset(of: negotiated) else {
      throw DeviceError(
        "the IOMMU's state needs features that are not offered here: bits \(negotiated.subtracting(features).bits)")
    }
    guard saved.domains.count <= options.maxDomains else {
      throw DeviceError("the IOMMU's state has more than \(options.maxDomains) domains")
    }
    var mappings = 0
    var domains: [UInt32: DomainEntry] = [:]
    for (i, domain) in saved.domains.enumerated() {
      guard i == 0 || saved.domains[i - 1].number < domain.number, options.domainRange.contains(domain.number),
        saved.negotiated != nil,
        !domain.isBypass || negotiated.contains(.iommuBypassConfig) && domain.mappings.isEmpty
      else { throw DeviceError("the IOMMU's state has a domain \(domain.number) that cannot be") }
      mappings += domain.mappings.count
      guard mappings <= options.maxMappings else {
        throw DeviceError("the IOMMU's state has more than \(options.maxMappings) mappings")
      }
      domains[domain.number] = DomainEntry(domain: domain.isBypass ? nil : try makeDomain(domain, negotiated))
    }
    for (i, (requester, number)) in saved.attachments.enumerated() {
      guard i == 0 || saved.attachments[i - 1].requester.rawValue < requester.rawValue,
        requester != options.ownRequester, let entry = domains[number]
      else {
        throw DeviceError("the IOMMU's state has an attachment of \(requester) that cannot be")
      }
      for memory in reserved(requester)
      where entry.domain?.isMapped(
        from: DMAAddress(memory.range.lowerBound), through: DMAAddress(memory.range.upperBound)) == true
      {
        throw DeviceError("the IOMMU's state has mappings that \(requester) keeps for itself here")
      }
      domains[number]?.endpoints.insert(requester)
    }
    // A domain ends with its last endpoint (§5.13.6).
    guard domains.values.allSatisfy({ !$0.endpoints.isEmpty }) else {
      throw DeviceError("the IOMMU's state has a domain without an endpoint")
    }
    return domains
  }

  private func makeDomain(_ saved: IOMMUState.Domain, _ negotiated: Features) throws(DeviceError) -> Domain {
    let domain = makeDomain()
    for (i, run) in saved.mappings.enumerated() {
      let (first, last) = (run.first.rawValue, run.last.rawValue)
      guard i == 0 || saved.mappings[i - 1].last < run.first, negotiated.contains(.iommuMapUnmap),
        isMappable(first, last, run.guest.rawValue)
      else {
        throw DeviceError("the IOMMU's state has a mapping at 0x\(String(first, radix: 16)) that cannot be")
      }
      try rethrowing(
        domain.map(run.first, byteCount: last - first + 1, to: run.guest, permissions: run.permissions),
        saying: { _ in
          DeviceError("the IOMMU's state has a mapping at 0x\(String(first, radix: 16)) that its domain does not take")
        })
    }
    return domain
  }
}
