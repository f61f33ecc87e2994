public import DMA
public import IOMMUInterface

/// What a device sees: looks addresses up through a cache of its own, as queues do, each time in a round of its own.
public struct DeviceView: ~Copyable {
  private var cache: IOTLB

  public init(_ space: any DMASpace) { cache = IOTLB(space) }

  /// Bytes at an address, or why they cannot be reached that way. Nothing is reported.
  public mutating func bytes(
    _ address: UInt64, _ count: Int, _ access: DMAAccess = .read
  ) -> Result<[UInt8], DMAInterruption> {
    _ = cache.beginRound()
    defer { cache.endRound() }
    return cache.bytes(address, count, access)
  }

  /// Reads eight bytes, or is refused; the fault is reported as a queue reports it.
  public mutating func read(_ address: UInt64) -> Result<UInt64, DMAFault> { reach(address, .read) }
  /// The same; nil when it is refused.
  public mutating func word(_ address: UInt64) -> UInt64? { try? read(address).get() }
  /// Asks to write, without doing it.
  public mutating func asksToWrite(_ address: UInt64) -> DMAFault? {
    if case .failure(let fault) = reach(address, .write) { fault } else { nil }
  }
  public mutating func canWrite(_ address: UInt64) -> Bool { asksToWrite(address) == nil }

  private mutating func reach(_ address: UInt64, _ access: DMAAccess) -> Result<UInt64, DMAFault> {
    switch bytes(address, 8, access) {
    case .success(let bytes): return .success(bytes.word)
    case .failure(.fault(let fault)):
      cache.space.report(fault)
      return .failure(fault)
    case .failure: preconditionFailure("nothing here has to be asked for")
    }
  }
}

extension IOTLB {
  /// Bytes at an address, in a round that has begun, or why they cannot be reached that way.
  public mutating func bytes(
    _ address: UInt64, _ count: Int, _ access: DMAAccess = .read
  ) -> Result<[UInt8], DMAInterruption> {
    var pool = SegmentPool()
    var list = pool.take()
    do throws(DMAInterruption) {
      try resolve(DMAAddress(address), count: count, for: access, into: &list)
    } catch { return .failure(error) }
    let bytes = list.readable.bytes()
    pool.give(back: list)
    return .success(bytes)
  }

  /// The byte at an address, in a round that has begun.
  public mutating func byte(_ address: UInt64, _ access: DMAAccess = .read) -> Result<UInt8, DMAInterruption> {
    bytes(address, 1, access).map { $0[0] }
  }
}

extension IOMMU {
  /// A requester with bus mastering on behind this unit.
  public func plug(_ requester: RequesterID, _ memory: GuestMemory) -> EndpointSpace {
    let endpoint = EndpointSpace(memory, requester: requester, isOpen: true)
    adopt(endpoint)
    return endpoint
  }
}
