/// Hears which device addresses the chains of one queue name, and when each chain ends; see
/// ``DMASpace/makeChainObserver()``. Used on the queue's thread.
public protocol ChainObserver: AnyObject {
  /// The chain that is walked names `count` bytes, one or more, at `address`: as a buffer or as an indirect table.
  func named(_ address: DMAAddress, count: UInt64)
  /// How many pieces the chain that is walked has named so far. They count as what the queue's chains hold.
  var namedPieces: Int { get }
  /// The chain that was walked is to be walked again, from its start.
  func walkRepeats()
  /// The chain that was walked is in flight now, under a number that no other chain in flight has.
  func taken(_ chain: UInt32)
  /// A chain ends; the driver hears of it afterwards. Returns how many pieces it had named.
  func ended(_ chain: UInt32) -> Int
}

// What a queue tells its space's observer, if there is one.
extension IOTLB {
  /// Whether the space wants to hear of chains.
  public var hearsOfChains: Bool { observer != nil }

  /// As ``ChainObserver/named(_:count:)``.
  @inlinable @inline(__always) public func named(_ address: DMAAddress, count: UInt64) {
    if observer != nil { tellNamed(address, count) }
  }

  @usableFromInline func tellNamed(_ address: DMAAddress, _ count: UInt64) { observer?.named(address, count: count) }

  /// As ``ChainObserver/namedPieces``; 0 where there is no observer.
  public var namedPieces: Int { observer?.namedPieces ?? 0 }

  /// As ``ChainObserver/walkRepeats()``.
  public func walkRepeats() { observer?.walkRepeats() }

  /// As ``ChainObserver/taken(_:)``.
  public func taken(_ chain: UInt32) { observer?.taken(chain) }

  /// As ``ChainObserver/ended(_:)``. What is cached of large runs goes, in case the space has taken them back.
  public mutating func ended(_ chain: UInt32) -> Int {
    guard let pieces = observer?.ended(chain), pieces > 0 else { return 0 }
    lastStart = 1
    lastEnd = 0
    other = HostRun(start: 1, last: 0, host: 0, permissions: [])
    return pieces
  }
}
