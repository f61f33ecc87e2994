internal import DMA

/// Which translations have been asked for and not been answered, who waits for them, and which were refused.
///
///     nothing ──ask──▶ asked ──update────────────▶ nothing, waiters woken
///                        │
///                        └──answer, no update────▶ refused, waiters woken ──retry──▶ a fault ──reported──▶ nothing
///
/// A question is asked once per page and kind of access, however many queues wait for it (R115). A queue is woken when all
/// that it waits for is answered: a chain of many cold pages is retried once. A refusal serves the one chain of the queue
/// that waited: what the guest maps later is asked for anew. Not thread-safe; its owner locks.
struct PendingMisses {
  /// A page and what is wanted of it. An answer for writing serves a reader too, but not the other way round.
  struct Key: Hashable {
    var page: UInt64
    var access: DMAAccess

    init(_ address: DMAAddress, _ access: DMAAccess) {
      page = address.rawValue >> 12
      self.access = access
    }
  }

  /// Who waits. Without a waiter (a test, a look-up on the control thread) nobody is woken.
  struct Waiter {
    var queue: (any TranslationWaiter)?
    /// What it wants to do. Empty once the queue gave its access up for a fault elsewhere: it is woken, but no refusal is kept
    /// for it. Nor is one kept for a reader of what a refused question wanted to write: it asks for itself.
    var wanted: DMAPermissions
    var identity: ObjectIdentifier? { queue.map(ObjectIdentifier.init) }
  }

  /// A question on its way. `epoch` tells whether it was asked before the last flush. The number tells it from an earlier one
  /// about the same page: the update that settles a question is on one socket and its answer on another, so the guest can have
  /// unmapped and mapped the page again, and a queue have asked again, before the first answer is read.
  struct Question: Hashable {
    var key: Key
    var epoch: UInt64
    var number: UInt64
  }

  enum Verdict: Equatable {
    /// Ask the front-end.
    case ask(Question)
    /// Somebody did.
    case wait
    /// The front-end said no.
    case refused
  }

  private(set) var epoch: UInt64 = 0
  private var asked: UInt64 = 0
  private var waiting: [Key: [Waiter]] = [:]
  /// The number of the question that each key in `waiting` waits for.
  private var numbers: [Key: UInt64] = [:]
  private var refusals: [Key: Set<ObjectIdentifier?>] = [:]
  /// Questions of earlier epochs whose answers are still to come: an update that comes for one is not kept (R064).
  private var stale: [UInt64: Int] = [:]

  /// How many questions are open.
  var count: Int { waiting.count }

  /// What to do about an access that found no mapping.
  mutating func want(_ address: DMAAddress, _ access: DMAAccess, _ queue: (any TranslationWaiter)?) -> Verdict {
    let key = Key(address, access)
    let identity = queue.map(ObjectIdentifier.init)
    if refusals[key]?.contains(identity) == true { return .refused }
    if waiting[key] != nil {
      join(key, access, queue, identity)
      return .wait
    }
    // A question about writing is open: its answer will do.
    if access == .read {
      let writing = Key(address, .write)
      if waiting[writing] != nil {
        join(writing, access, queue, identity)
        return .wait
      }
    }
    waiting[key] = [Waiter(queue: queue, wanted: Self.permission(for: access))]
    asked &+= 1
    numbers[key] = asked
    return .ask(Question(key: key, epoch: epoch, number: asked))
  }

  private mutating func join(_ key: Key, _ access: DMAAccess, _ queue: (any TranslationWaiter)?, _ identity: ObjectIdentifier?) {
    let wanted = Self.permission(for: access)
    if let place = waiting[key]?.firstIndex(where: { $0.identity == identity }) {
      waiting[key]?[place].wanted.insert(wanted)
    } else {
      waiting[key]?.append(Waiter(queue: queue, wanted: wanted))
    }
  }

  private static func permission(for access: DMAAccess) -> DMAPermissions { access == .read ? .read : .write }

  /// A chain, or a ring, ended in a fault at `address`. Refusals of its other pages, come or still to come, are nobody's any
  /// more.
  mutating func faulted(_ address: DMAAddress, _ access: DMAAccess) {
    guard let owners = refusals[Key(address, access)] else { return }
    for key in Array(refusals.keys) {
      refusals[key]?.subtract(owners)
      if refusals[key]?.isEmpty == true { refusals[key] = nil }
    }
    for key in Array(waiting.keys) {
      guard let waiters = waiting[key] else { continue }
      waiting[key] = waiters.map { Waiter(queue: $0.queue, wanted: owners.contains($0.identity) ? [] : $0.wanted) }
    }
  }

  /// Those of `waiters` that wait for nothing else.
  private func free(_ waiters: [Waiter]) -> [Waiter] {
    guard !waiting.isEmpty else { return waiters }
    var busy: Set<ObjectIdentifier?> = []
    for others in waiting.values { for other in others where !other.wanted.isEmpty { busy.insert(other.identity) } }
    return waiters.filter { !busy.contains($0.identity) }
  }

  /// The question could not be sent and never will be.
  mutating func withdraw(_ question: Question) -> [Waiter] {
    guard question.epoch == epoch, numbers[question.key] == question.number else { return [] }
    return stop(waitingFor: question.key)
  }

  /// True if an update for `first` through `last` answers only questions from before the last flush.
  func isLate(from first: UInt64, through last: UInt64) -> Bool {
    guard !stale.isEmpty else { return false }
    guard stale.keys.contains(where: { $0 >= first >> 12 && $0 <= last >> 12 }) else { return false }
    return !waiting.keys.contains { $0.page >= first >> 12 && $0.page <= last >> 12 }
  }

  /// The pages, by their addresses, that are asked for and touch `first` through `last`.
  func openPages(from first: UInt64, through last: UInt64) -> [UInt64] {
    Set(waiting.keys.map(\.page)).filter { $0 >= first >> 12 && $0 <= last >> 12 }.map { $0 << 12 }
  }

  /// Mappings appeared: whoever waited for them (or was refused before) is to try again.
  mutating func updated(from first: UInt64, through last: UInt64, permissions: DMAPermissions) -> [Waiter] {
    var woken: [Waiter] = []
    let pages = first >> 12...last >> 12
    if pages.count == 1 {
      for access in [DMAAccess.read, .write] { woken += settle(Key(DMAAddress(first), access), permissions) }
    } else {
      for key in Array(waiting.keys) + Array(refusals.keys) where pages.contains(key.page) { woken += settle(key, permissions) }
    }
    return free(woken)
  }

  private mutating func settle(_ key: Key, _ permissions: DMAPermissions) -> [Waiter] {
    guard permissions.allows(key.access) else { return [] }
    refusals[key] = nil
    return stop(waitingFor: key)
  }

  private mutating func stop(waitingFor key: Key) -> [Waiter] {
    numbers[key] = nil
    return waiting.removeValue(forKey: key) ?? []
  }

  /// The front-end finished with a question. If nobody waits for this one any more, an update came first.
  mutating func answered(_ question: Question) -> [Waiter] {
    guard question.epoch == epoch else {
      if let left = stale[question.key.page], left > 1 {
        stale[question.key.page] = left - 1
      } else {
        stale[question.key.page] = nil
      }
      return []
    }
    guard numbers[question.key] == question.number else { return [] }
    let waiters = stop(waitingFor: question.key)
    let interested = Set(waiters.filter { $0.wanted.allows(question.key.access) }.map(\.identity))
    if !interested.isEmpty { refusals[question.key, default: []].formUnion(interested) }
    return free(waiters)
  }

  /// Mappings were taken back: refusals there are history.
  mutating func invalidated(from first: UInt64, through last: UInt64) {
    guard !refusals.isEmpty else { return }
    for key in refusals.keys where key.page >= first >> 12 && key.page <= last >> 12 { refusals[key] = nil }
  }

  /// Forgets everything; answers to open questions are ignored when they come. `unanswered` are the questions that were sent.
  mutating func flush(unanswered: [Question]) -> [Waiter] {
    epoch += 1
    for question in unanswered where question.epoch == epoch - 1 { stale[question.key.page, default: 0] += 1 }
    let woken = waiting.values.flatMap { $0 }
    waiting = [:]
    numbers = [:]
    refusals = [:]
    return woken
  }
}
