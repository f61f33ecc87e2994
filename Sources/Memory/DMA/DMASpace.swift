/// A run of host memory behind a run of device addresses, with what may be done to it. Opaque above this module.
@frozen public struct HostRun: Hashable, Sendable {
  @usableFromInline var start: UInt64
  @usableFromInline var last: UInt64
  @usableFromInline var host: UInt64
  public var permissions: DMAPermissions

  @usableFromInline init(start: UInt64, last: UInt64, host: UInt64, permissions: DMAPermissions) {
    self.start = start
    self.last = last
    self.host = host
    self.permissions = permissions
  }

  /// A run of memory that is not mapped here: accesses to it are messages to the process that has it.
  package init(remoteFrom first: DMAAddress, through last: DMAAddress, permissions: DMAPermissions) {
    self.init(start: first.rawValue, last: last.rawValue, host: 0, permissions: permissions)
  }

  /// Whether the memory is not mapped here. No mapping is at host address 0.
  @inlinable public var isRemote: Bool { host == 0 }

  /// The part of the run that starts `offset` bytes in and is `count` bytes long, seen from `address`; nil if it is not
  /// inside the run.
  public func part(
    from offset: UInt64, count: UInt64, seenFrom address: DMAAddress, permissions: DMAPermissions
  ) -> HostRun? {
    guard count > 0, offset <= last - start, count - 1 <= last - start - offset,
      address.rawValue <= UInt64.max - (count - 1)
    else { return nil }
    return HostRun(
      start: address.rawValue, last: address.rawValue + (count - 1), host: host &+ offset, permissions: permissions)
  }
}

/// Woken when a translation that was ``DMAInterruption/pending`` can be tried again. Called on any thread; must not
/// block.
public protocol TranslationWaiter: AnyObject, Sendable {
  func wake()
}

/// What a device may reach. It answers one question: which memory is around this address?
public protocol DMASpace: AnyObject, Sendable {
  /// Holds and ends the use of mappings; see ``TranslationFence``.
  var fence: TranslationFence { get }
  /// The space's mappings where queues can look without asking, or nil.
  var table: TranslationTable? { get }
  /// Where device writes are marked now, or nil.
  var dirtyLog: DirtyLog? { get }
  /// Answers a look-up that neither the queue's cache nor ``table`` could. Never waits for a peer: an answer that has
  /// to be asked for throws `pending`, and `waiter` is woken when it is in. Called on queue threads.
  func translate(
    _ address: DMAAddress, for access: DMAAccess, waking waiter: (any TranslationWaiter)?
  ) throws(DMAInterruption) -> HostRun
  /// Where queues count their look-ups, or nil; always the same one.
  var ledger: LookUpStatistics? { get }
  /// Called for a fault that ended an access, once per access (R092).
  func report(_ fault: DMAFault)
  /// Tells the space that a walk which met a page that had to be asked for is over. `repeats`: the walk will be done
  /// again when its questions are answered; otherwise its access was made, or given up, and refusals meant for it are
  /// dropped. Returns whether there is a point in repeating: false if it needs more mappings at once than are kept.
  /// Called on queue threads.
  func walkEnded(_ waiter: (any TranslationWaiter)?, repeats: Bool) -> Bool
  /// Asks for a page that no chain waits for yet, if the page has to be asked for and has not been; sent with the walk
  /// that ends next. False if no more such pages are asked for now. Called on queue threads.
  func prefetch(_ address: DMAAddress, for access: DMAAccess) -> Bool
  /// Pages without an answer that one walk may meet before it stops asking, as it is now: 0 where no more questions are
  /// allowed. Read after each such page, without a lock. Further pages wait for the next walk, so the number of
  /// questions open at one time is bounded for chains of any size; the limit is high enough that walking again costs
  /// little for each page.
  var asksPerWalk: Int { get }
  /// Whether the driver can remove a mapping, a ring's included.
  var isTranslated: Bool { get }
  /// The process that does accesses to runs that are not mapped here (``HostRun/isRemote``), or nil: there are none.
  /// Always the same one.
  var remote: (any RemoteMemory)? { get }
  /// Makes what hears of the chains of one queue, or nil: nearly no space wants to. Called once for each queue.
  func makeChainObserver() -> (any ChainObserver)?
}

extension DMASpace {
  public var table: TranslationTable? { nil }
  public var ledger: LookUpStatistics? { nil }
  public func report(_ fault: DMAFault) {}
  public func walkEnded(_ waiter: (any TranslationWaiter)?, repeats: Bool) -> Bool { true }
  public func prefetch(_ address: DMAAddress, for access: DMAAccess) -> Bool { false }
  public var asksPerWalk: Int { IOTLB.mostAsksPerWalk }
  public var isTranslated: Bool { true }
  public func makeChainObserver() -> (any ChainObserver)? { nil }
  public var remote: (any RemoteMemory)? { nil }
}

/// The machine's physical memory as a device without an IOMMU in its way sees it.
public final class PhysicalSpace: DMASpace {
  public let fence = TranslationFence()
  public var isTranslated: Bool { false }
  public let memory: GuestMemory
  private let faulted: @Sendable (DMAFault) -> Void

  /// A space over `memory`. `faulted` is called for refused accesses, on queue threads; it must not wait.
  public init(_ memory: GuestMemory, faulted: @escaping @Sendable (DMAFault) -> Void = { _ in }) {
    self.memory = memory
    self.faulted = faulted
    memory.register(fence)
  }

  public var dirtyLog: DirtyLog? { memory.dirtyLog }

  public func report(_ fault: DMAFault) { faulted(fault) }

  public func translate(
    _ address: DMAAddress, for access: DMAAccess, waking waiter: (any TranslationWaiter)?
  ) throws(DMAInterruption) -> HostRun {
    guard let run = memory.run(at: GuestAddress(address.rawValue)) else {
      throw .fault(DMAFault(address: address, access: access, reason: .unmapped))
    }
    return run
  }
}
