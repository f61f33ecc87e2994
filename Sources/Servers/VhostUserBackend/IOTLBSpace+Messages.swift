internal import DMA
internal import SocketMessages
internal import Synchronization
internal import VhostUser

/// What the control thread does to the space. None of it may be called on a queue's thread: each may wait for queues.
extension IOTLBSpace {
  /// Carries out an update or an invalidation of the front-end.
  ///
  /// - Throws: `ProtocolError` if the message makes no sense; the space is then as it was (R107, R108).
  func apply(_ message: IOTLBMessage) throws(ProtocolError) { wake(try change(message)) }

  /// As ``apply(_:)``, but wakes no walk, and returns those to wake: after the answer, for which the front-end waits
  /// with all that it holds, while a queue that wakes may take its processor.
  func change(_ message: IOTLBMessage) throws(ProtocolError) -> [any TranslationWaiter] {
    switch message.kind {
    case .update: return try update(message)
    case .invalidate:
      invalidate(message)
      return []
    case .miss, .accessFail: throw ProtocolError("IOTLB_MSG", "a front-end does not send \(message.kind)")
    }
  }

  private func update(_ message: IOTLBMessage) throws(ProtocolError) -> [any TranslationWaiter] {
    guard message.size > 0 else { throw ProtocolError("IOTLB_MSG", "an update of size 0") }
    let first = message.address
    let (last, wraps) = first.addingReportingOverflow(message.size - 1)
    guard !wraps else { throw ProtocolError("IOTLB_MSG", "an update that passes the end of the address space") }
    guard message.permission.isSubset(of: [.read, .write]) else {
      throw ProtocolError("IOTLB_MSG", "an update with permission \(message.permission.rawValue)")
    }
    let permissions = DMAPermissions(rawValue: message.permission.rawValue)
    let runs = try memoryRuns(behind: message, last, permissions)
    countUpdate(message, leadingTo: runs[0])
    var question: PendingMisses.Question?
    switch state.withLock({ $0.misses.meaning(ofUpdateFrom: first, through: last) }) {
    case .late(let late):
      return state.withLock {
        $0.misses.updated(from: first, through: last, granted: [], answering: late, isNews: false)
      }
    case .answer(let open):
      // One that does not allow what was asked answers nothing, and leaves the question to its answer.
      if permissions.allows(open.key.access) { question = open }
    case .unasked: break
    }
    let asked: DMAPermissions = question.map { $0.key.access == .read ? .read : .write } ?? .readWrite
    let isNews =
      servesOneChain
      ? try enterAsked(runs, asked, question) : try enter(runs, from: first, through: last, asked, question)
    let granted = permissions.intersection(asked)
    return state.withLock {
      $0.misses.updated(from: first, through: last, granted: granted, answering: question, isNews: isNews)
    }
  }

  /// The host memory that an update names, region by region.
  private func memoryRuns(
    behind message: IOTLBMessage, _ last: UInt64, _ permissions: DMAPermissions
  ) throws(ProtocolError) -> [HostRun] {
    var runs: [HostRun] = []
    var at = message.address
    while true {
      let frontend = message.frontendAddress.addingReportingOverflow(at - message.address)
      guard !frontend.overflow,
        let run = memoryTable.run(
          at: FrontendAddress(frontend.partialValue), seenFrom: DMAAddress(at), through: DMAAddress(last),
          permissions: permissions)
      else { throw ProtocolError("IOTLB_MSG", "an update outside the memory table") }
      runs.append(run)
      // A region is shorter than 2^64, so a run is never of all addresses, whose count would be 0.
      guard run.byteCount <= last - at else { return runs }
      at += run.byteCount
    }
  }

  /// Enters what an update names, as far as it was asked for. False if everything was so before.
  private func enter(
    _ runs: [HostRun], from first: UInt64, through last: UInt64, _ asked: DMAPermissions,
    _ question: PendingMisses.Question?
  ) throws(ProtocolError) -> Bool {
    var change = MappingChange()
    for run in runs {
      let one = self.change(to: run, asked)
      change.pieces += one.pieces
      change.takesAway = change.takesAway || one.takesAway
      change.isNews = change.isNews || one.isNews
    }
    guard change.isNews else { return false }
    // Mappings that the update removes are not used any more once it is acknowledged (R109). If it only adds an access
    // there is nothing to wait for.
    if change.takesAway, remove(from: first, through: last) { fence.drain(from: first, through: last) }
    for run in change.pieces where !run.permissions.isEmpty { try enter(run, question) }
    return true
  }

  /// What entering `run` changes if `asked` was asked for: a page that is read and written is asked about twice, and
  /// the second answer leaves what the first one granted.
  private func change(to run: HostRun, _ asked: DMAPermissions) -> MappingChange {
    let first = run.firstAddress.rawValue
    let last = first &+ (run.byteCount &- 1)
    let odd = state.withLock { $0.odd.filter { $0.overlaps(from: first, through: last) } }
    if run.isWholePages, odd.isEmpty { return pages.change(to: run, granting: asked) }
    let known = odd.reduce(into: DMAPermissions()) { if $1.leads(whereDoes: run) { $0.formUnion($1.permissions) } }
    var whole = run
    whole.permissions = run.permissions.intersection(asked.union(known))
    return MappingChange(pieces: [whole], takesAway: true, isNews: true)
  }

  /// Enters only pages that a chain waits for: it drops them when it is done. Other pages of an update, or a second
  /// answer about the same page, would stay for ever.
  private func enterAsked(
    _ runs: [HostRun], _ asked: DMAPermissions, _ question: PendingMisses.Question?
  ) throws(ProtocolError) -> Bool {
    for run in runs {
      let start = run.firstAddress.rawValue
      let end = start &+ (run.byteCount &- 1)
      let open = state.withLock { $0.misses.openPages(from: start, through: end) }
      for page in open {
        let address = max(page, start)
        let count = min(end - address, (page | 4095) - address) + 1
        guard
          let part = run.part(
            from: address - start, count: count, seenFrom: DMAAddress(address), permissions: run.permissions)
        else { continue }
        for piece in change(to: part, asked).pieces where !piece.permissions.isEmpty { try enter(piece, question) }
      }
    }
    return true
  }

  private func enter(_ run: HostRun, _ question: PendingMisses.Question?) throws(ProtocolError) {
    if pages.insert(run) { return }
    if run.isWholePages {
      // Full: everything goes, so that the newest is in and its queue makes progress (R117). The rest is asked for
      // again, but not for ever by a chain that needs more than there is room for.
      counters.withLock { $0.evictions += 1 }
      if let question { state.withLock { $0.misses.evicted(for: question) } }
      pages.removeAll(drained: fence)
      guard pages.insert(run) else { throw ProtocolError("IOTLB_MSG", "the update needs more room than there is") }
      return
    }
    let isFull = state.withLock { state in
      defer { state.odd.append(run) }
      guard state.odd.count >= Self.oddLimit else { return false }
      state.odd.removeAll()
      return true
    }
    if isFull {
      counters.withLock { $0.evictions += 1 }
      fence.drain()
    }
  }

  private func invalidate(_ message: IOTLBMessage) {
    // The last byte, not the end: QEMU's flush in lazy mode ends at 2^64. Size 0 means everything (R108).
    var first: UInt64 = 0
    var last = UInt64.max
    if message.size > 0 {
      first = message.address
      let sum = first.addingReportingOverflow(message.size - 1)
      last = sum.overflow ? .max : sum.partialValue
    }
    counters.withLock { $0.invalidations += 1 }
    state.withLock { $0.misses.invalidated(from: first, through: last) }
    // Where a chain gives its pages back, another one that is under way may still use what is no longer here.
    let wasThere = remove(from: first, through: last)
    if wasThere || servesOneChain { fence.drain(from: first, through: last) }
  }

  /// True if something was there.
  private func remove(from first: UInt64, through last: UInt64) -> Bool {
    let removed = pages.remove(from: first, through: last)
    let odd = state.withLock { state in
      let before = state.odd.count
      state.odd.removeAll { $0.overlaps(from: first, through: last) }
      return before - state.odd.count
    }
    return removed + odd > 0
  }

  /// Takes the front-end's answer to a question: a question without an update before it becomes a fault when its access
  /// is tried again.
  ///
  /// The value of the answer is no matter. Not 0 says that the front-end could not do what it was asked for; then there
  /// was no update, or the update stands as any other does until it is taken back. 0 without an update has nothing to
  /// grant.
  func answered(_ question: PendingMisses.Question) {
    wake(state.withLock { $0.misses.answered(question) })
  }

  /// The question was lost on its way: the walks that wait for it ask anew.
  func askAgain(_ question: PendingMisses.Question) {
    wake(state.withLock { $0.misses.withdraw(question) })
  }

  /// Forgets every mapping and waits until none is used (R113, R114). Answers to questions that are still open are
  /// ignored.
  func flush() {
    let woken = state.withLock { state in
      state.odd.removeAll()
      return state.misses.flush()
    }
    pages.removeAll(drained: fence)
    // A queue that still runs asks again; one that stopped does not mind.
    wake(woken)
  }

  func wake(_ waiters: [any TranslationWaiter]) {
    for waiter in waiters { waiter.wake() }
  }
}
