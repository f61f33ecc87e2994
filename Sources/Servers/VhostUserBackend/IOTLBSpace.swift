public import DMA
internal import Synchronization
internal import VhostUser
public import VirtioServing

/// What a vhost-user device may reach behind the front-end's IOMMU: what IOTLB messages said, and nothing else.
///
/// Queues walk the table without a lock. Where it has nothing, ``translate(_:for:waking:)`` asks the front-end once and
/// says `pending`; the control thread enters the answer and wakes the queues. Nothing here waits for the front-end
/// (R116). An invalidation ends when no access can use the old mapping, I/O under way included (R110).
///
/// What is granted is what was asked for and what the answer allows, both at once: QEMU's answers always allow both
/// accesses, even if its IOMMU would refuse the other one (R084, R104). An update that was not asked for is taken at
/// its word (R106).
///
/// Mappings of whole pages live in the radix tree. Others, which the protocol allows and no front-end is known to send,
/// live in a short list.
public final class IOTLBSpace: DMASpace {
  public let fence = TranslationFence()
  /// Whether a translation serves one chain only, because the front-end does not say when a mapping ends; see
  /// ``ChainTranslations``.
  let servesOneChain: Bool
  let pages: TranslationTable
  private let memory: GuestMemory
  /// What updates lead into: for the control thread.
  let memoryTable: MemoryTable
  let state: Mutex<State>
  private let room: MissQuota
  let counters = Mutex(Counters())
  private let lookUps = LookUpStatistics()
  /// Takes a question, or a report of a refused access; false if there is no front-end to ask. Called on queue threads,
  /// and must not block.
  private let ask: @Sendable (IOTLBMessage, PendingMisses.Question?) -> Bool
  /// Sends what `ask` took: a walk has asked for all it wants. Called on queue threads, and must not block.
  private let asked: @Sendable () -> Void
  private let faulted: @Sendable (DMAFault) -> Void

  struct State {
    var misses = PendingMisses()
    var odd: [HostRun] = []
  }

  struct Counters {
    var questions: UInt64 = 0
    var updates: UInt64 = 0
    var invalidations: UInt64 = 0
    var faults: UInt64 = 0
    var evictions: UInt64 = 0
    var signs = TranslationHints()
  }

  /// Mappings of parts of pages that are kept at most.
  static let oddLimit = 256

  /// A space over a table's memory, empty (R102). `ask` takes messages for the back-end's channel, and `asked` says
  /// that they are to be sent now; `faulted` is called for refused accesses, on queue threads.
  init(
    _ table: MemoryTable, maxNodes: Int = 1 << 13, servesOneChain: Bool = false,
    ask: @escaping @Sendable (IOTLBMessage, PendingMisses.Question?) -> Bool,
    asked: @escaping @Sendable () -> Void = {},
    faulted: @escaping @Sendable (DMAFault) -> Void = { _ in }
  ) {
    memoryTable = table
    memory = table.memory
    self.pages = TranslationTable(maxNodes: maxNodes)
    self.ask = ask
    self.asked = asked
    self.faulted = faulted
    self.servesOneChain = servesOneChain
    let misses = PendingMisses()
    room = misses.room
    state = Mutex(State(misses: misses))
    memory.register(fence)
  }

  public var table: TranslationTable? { pages }
  public var dirtyLog: DirtyLog? { memory.dirtyLog }
  public var ledger: LookUpStatistics? { lookUps }

  /// What happened in the space so far, and what it reaches now.
  public var statistics: ServingReport.Translations {
    let odd = state.withLock { $0.odd }
    let oddBytes = odd.reduce(UInt64(0)) { $0 &+ $1.byteCount }
    let sum = lookUps.sum
    return counters.withLock { counters in
      var all = ServingReport.Translations()
      all.reachableBytes = pages.byteCount &+ oddBytes
      all.peakReachableBytes = max(pages.peakByteCount, all.reachableBytes)
      all.mappings = pages.mappings + odd.count
      (all.hits, all.misses) = (sum.hits, sum.misses)
      (all.questions, all.updates) = (counters.questions, counters.updates)
      (all.invalidations, all.evictions) = (counters.invalidations, counters.evictions)
      all.faults = counters.faults
      (all.identities, all.moved) = (counters.signs.identities, counters.signs.moved)
      return all
    }
  }

  // MARK: Queue threads

  public func translate(
    _ address: DMAAddress, for access: DMAAccess, waking waiter: (any TranslationWaiter)?
  ) throws(DMAInterruption) -> HostRun {
    let verdict: Result<HostRun, DMAInterruption> = state.withLock { state in
      // The answer may have come since the queue looked.
      let found = pages.run(at: address) ?? state.odd.first { $0.contains(address) }
      if let found, found.permissions.allows(access) { return .success(found) }
      switch state.misses.want(address, access, waiter) {
      case .wait: return .failure(.pending)
      case .refused:
        return .failure(
          .fault(DMAFault(address: address, access: access, reason: found == nil ? .unmapped : .permission)))
      case .ask(let question):
        if send(question, about: address, &state) { return .failure(.pending) }
        return .failure(.fault(DMAFault(address: address, access: access, reason: .unmapped)))
      }
    }
    // Nothing would mark the end of the questions of such a look-up.
    if waiter == nil, case .failure(.pending) = verdict { asked() }
    return try verdict.get()
  }

  public func prefetch(_ address: DMAAddress, for access: DMAAccess) -> Bool {
    // Where translations are given back with their chain, what no chain waits for would stay.
    guard !servesOneChain else { return false }
    return state.withLock { state in
      if let found = pages.run(at: address), found.permissions.allows(access) { return true }
      switch state.misses.prefetch(address, access) {
      case .wait: return true
      case .refused: return false
      case .ask(let question): return send(question, about: address, &state)
      }
    }
  }

  /// Hands a question to `ask`. False if there is no front-end to ask; then it is not open any more.
  private func send(_ question: PendingMisses.Question, about address: DMAAddress, _ state: inout State) -> Bool {
    let access: IOTLBMessage.Permission = question.key.access == .read ? .read : .write
    // The channel's queue is filled under the lock, so that a question and its record cannot be seen one without the
    // other; filling it does not block.
    guard ask(IOTLBMessage(kind: .miss, address: address.rawValue, permission: access), question) else {
      state.misses.withdraw(question)
      return false
    }
    counters.withLock { $0.questions += 1 }
    return true
  }

  public var asksPerWalk: Int { room.left }

  public func makeChainObserver() -> (any ChainObserver)? { servesOneChain ? ChainTranslations(self) : nil }

  public func walkEnded(_ waiter: (any TranslationWaiter)?, repeats: Bool) -> Bool {
    asked()
    return state.withLock { state in
      if repeats { return state.misses.paused(waiter) }
      state.misses.ended(waiter)
      return true
    }
  }

  public func report(_ fault: DMAFault) {
    counters.withLock { $0.faults &+= 1 }
    faulted(fault)
    // No thread waits for an answer: if it cannot be sent, only the front-end misses it (R125).
    _ = ask(
      IOTLBMessage(
        kind: .accessFail, address: fault.address.rawValue, permission: fault.access == .read ? .read : .write), nil)
  }
}
