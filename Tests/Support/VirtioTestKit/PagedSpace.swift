public import DMA
import Synchronization

/// A space made of single pages, mapped wherever a test wants them and with any permissions, whose answers can be held
/// back until the test gives them.
///
/// Deliberately plain: a dictionary, so that it can be wrong in other ways than the tables it stands in for.
public final class PagedSpace: DMASpace {
  public struct Question: Hashable, Sendable {
    public var address: DMAAddress
    public var access: DMAAccess
  }
  private struct Page {
    var guest: GuestAddress
    var permissions: DMAPermissions
  }
  private struct State {
    var pages: [UInt64: Page] = [:]
    /// Page numbers whose look-ups are not answered yet.
    var silent: Set<UInt64> = []
    var holdsEverything = false
    var questions: [Question] = []
    var waiters: [any TranslationWaiter] = []
    var asked: [Question] = []
    var faults: [DMAFault] = []
  }
  public let fence = TranslationFence()
  public let memory: GuestMemory
  public let table: TranslationTable?
  /// Bytes a page: 4096, or less to make runs smaller than the caches' granularity.
  public let granule: UInt64
  private let state = Mutex(State())
  private let lookUps = LookUpStatistics()

  /// - Parameter table: also enter mappings into a radix table that queues walk by themselves.
  public init(_ memory: GuestMemory, granule: UInt64 = 4096, table: Bool = false) {
    self.memory = memory
    self.granule = granule
    self.table = table ? TranslationTable() : nil
    memory.register(fence)
  }

  public var dirtyLog: DirtyLog? { memory.dirtyLog }
  public var ledger: LookUpStatistics? { lookUps }

  /// Maps whole pages, replacing what was there without waiting for its users (see ``unmap(_:byteCount:)``).
  public func map(
    _ address: DMAAddress, byteCount: Int, to guest: GuestAddress, _ permissions: DMAPermissions = .readWrite
  ) {
    precondition(address.rawValue % granule == 0 && guest.rawValue % granule == 0)
    let pages = (UInt64(byteCount) + granule - 1) / granule
    state.withLock { state in
      for i in 0..<pages {
        state.pages[address.rawValue / granule + i] = Page(
          guest: GuestAddress(guest.rawValue + i * granule), permissions: permissions)
        if let table, let run = run(address.rawValue + i * granule, state) { _ = table.insert(run) }
      }
    }
  }

  /// Unmaps whole pages and returns when nothing uses them.
  public func unmap(_ address: DMAAddress, byteCount: Int) {
    remove(address, byteCount: byteCount)
    fence.drain()
  }

  /// Unmaps whole pages and does not wait for queues.
  public func remove(_ address: DMAAddress, byteCount: Int) {
    let pages = (UInt64(byteCount) + granule - 1) / granule
    state.withLock { state in
      for i in 0..<pages { state.pages[address.rawValue / granule + i] = nil }
      _ = table?.remove(from: address.rawValue, through: address.rawValue + (pages * granule - 1))
    }
  }

  /// From now on a look-up of this page is pending until ``answer(_:)``.
  public func holdBack(_ address: DMAAddress) {
    state.withLock { state in
      state.silent.insert(address.rawValue / granule)
      _ = table?.remove(
        from: address.rawValue / granule * granule, through: address.rawValue / granule * granule + (granule - 1))
    }
  }

  /// From now on every look-up of a page that was not answered before is pending.
  public func holdBackEverything() {
    state.withLock { state in
      state.holdsEverything = true
      state.silent = Set(state.pages.keys)
      _ = table?.remove(from: 0, through: .max)
    }
  }

  /// Answers the look-ups of a page, and wakes the waiting queues.
  public func answer(_ address: DMAAddress) {
    let waiters = state.withLock { state in
      state.silent.remove(address.rawValue / granule)
      state.questions.removeAll { $0.address.rawValue / granule == address.rawValue / granule }
      let waiters = state.waiters
      state.waiters = []
      return waiters
    }
    for waiter in waiters { waiter.wake() }
  }

  /// Look-ups that wait for an answer, in the order they came.
  public var questions: [Question] { state.withLock { $0.questions } }
  /// Every look-up that came here, answered or not.
  public var asked: [Question] { state.withLock { $0.asked } }
  public var faults: [DMAFault] { state.withLock { $0.faults } }
  public func forgetFaults() { state.withLock { $0.faults = [] } }
  public func forgetAsked() { state.withLock { $0.asked = [] } }
  public var counts: LookUpStatistics.Sum { lookUps.sum }

  private func run(_ address: UInt64, _ state: borrowing State) -> HostRun? {
    guard let page = state.pages[address / granule], let region = memory.run(at: page.guest) else { return nil }
    let start = DMAAddress(address / granule * granule)
    // The region of memory that holds the page knows where in it the page is.
    guard let first = memory.regions.last(where: { $0.guestAddress <= page.guest }) else { return nil }
    return region.part(
      from: page.guest.rawValue - first.guestAddress.rawValue, count: granule, seenFrom: start,
      permissions: page.permissions)
  }

  public func translate(
    _ address: DMAAddress, for access: DMAAccess, waking waiter: (any TranslationWaiter)?
  ) throws(DMAInterruption) -> HostRun {
    let answer: Result<HostRun, DMAInterruption> = state.withLock { state in
      let number = address.rawValue / granule
      state.asked.append(Question(address: address, access: access))
      if state.silent.contains(number) {
        let question = Question(address: address, access: access)
        if !state.questions.contains(question) { state.questions.append(question) }
        if let waiter, !state.waiters.contains(where: { $0 === waiter }) { state.waiters.append(waiter) }
        return .failure(.pending)
      }
      guard let page = state.pages[number] else {
        return .failure(.fault(DMAFault(address: address, access: access, reason: .unmapped)))
      }
      guard page.permissions.allows(access) else {
        return .failure(.fault(DMAFault(address: address, access: access, reason: .permission)))
      }
      guard let run = run(address.rawValue, state) else {
        return .failure(.fault(DMAFault(address: address, access: access, reason: .unmapped)))
      }
      return .success(run)
    }
    return try answer.get()
  }

  public func report(_ fault: DMAFault) { state.withLock { $0.faults.append(fault) } }
}
