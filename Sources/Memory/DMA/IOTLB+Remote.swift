// Memory that another process has: addresses become copies.
extension IOTLB {
  /// ``resolve(_:count:for:into:)`` of what is not known to be in one place.
  @usableFromInline mutating func resolveHere(
    _ first: UInt64, _ beyond: UInt64, _ access: DMAAccess, _ segments: inout SegmentList
  ) throws(DMAInterruption) {
    try resolvePieces(first, beyond, access, &segments)
    if segments.hasCopies { try fetch(segments) }
  }

  /// As ``resolve(_:count:for:into:)``, but what the device reads may not be there before ``fetch(_:)``: for a list of
  /// many pieces, which are then fetched together.
  public mutating func gather(
    _ address: DMAAddress, count: Int, for access: DMAAccess, into segments: inout SegmentList
  ) throws(DMAInterruption) {
    guard count > 0, !resolveAtOnce(address, count: count, for: access, into: &segments) else { return }
    try resolvePieces(address.rawValue, UInt64(count &- 1), access, &segments)
  }

  /// Brings what ``gather(_:count:for:into:)`` left out. Costs nothing where all memory is mapped here.
  public func fetch(_ segments: borrowing SegmentList) throws(DMAInterruption) {
    guard segments.hasCopies else { return }
    try rethrowing(segments.fetchCopies(), as: DMAInterruption.fault)
  }

  /// The host address of a copy of `count` bytes at `a`.
  mutating func copy(
    _ a: UInt64, _ count: UInt64, _ access: DMAAccess, _ segments: inout SegmentList
  ) throws(DMAInterruption) -> UInt64 {
    guard let remote = space.remote, let n = Int(exactly: count),
      let copy = segments.makeCopy(of: remote, a, n, access, isFirst: !hasChains)
    else { throw .fault(DMAFault(address: DMAAddress(a), access: access, reason: .exhausted)) }
    return copy
  }

  /// A ring area that is a copy.
  func remoteRing(
    _ address: DMAAddress, _ count: Int, _ isReadable: Bool, _ access: DMAAccess
  ) throws(DMAInterruption) -> RingMemory {
    guard let remote = space.remote, let copy = try? HostMapping(anonymous: count) else {
      throw .fault(DMAFault(address: address, access: access, reason: .exhausted))
    }
    let area = RemoteArea(memory: remote, address: address)
    // Safe: the copy has `count` bytes, and the ring keeps it alive.
    let ring = unsafe RingMemory(owner: copy, base: copy.base, byteCount: count, remote: area)
    if isReadable { try rethrowing(ring.refresh(at: 0, count: count), as: DMAInterruption.fault) }
    return ring
  }
}
