internal import DMA

/// Which translations have been asked for and not been answered, which walks wait for them, and which were refused.
///
///     nothing ──ask──▶ open ──its update──▶ nothing, waiters woken
///                        │
///                        └──its answer, no update──▶ refused to the walk that asked ──▶ a fault of its chain
///
/// A question is about a page and one access, and is open until its update or its answer. It is asked once, however
/// many queues wait for it (R115). A walk is woken when all that it waits for is settled: a chain of many cold pages is
/// walked again once. A refusal belongs to the walk that asked and ends with it (``MissWalk``): another walk that
/// waited asks again, because the guest may have mapped the page since the question was sent.
///
/// A front-end answers in the order in which it was asked: its answers carry no other identification. So an update is
/// the answer to the first question that is open about one of its pages, and grants what that one asked for; a second
/// question about a page, for the other access, has an update of its own. Both are under way at once. One question
/// about both would do where a front-end looks both up; QEMU looks up writing only, and answers with both.
///
/// Queues that ask at the same time have an equal part each of all that may be open (``room``). One that found no room
/// is woken when there is some, in the order in which they came, and no more of them than there is room for.
///
/// No operation walks through all that is open, but for an update of many pages and ``flush()``. Not thread-safe; its
/// owner locks.
struct PendingMisses {
  /// A page and what is wanted of it.
  struct Key: Hashable {
    private var word: UInt64

    init(page: UInt64, _ access: DMAAccess) { word = page << 1 | (access == .write ? 1 : 0) }
    init(_ address: DMAAddress, _ access: DMAAccess) { self.init(page: address.rawValue >> 12, access) }

    var page: UInt64 { word >> 1 }
    var access: DMAAccess { word & 1 == 0 ? .read : .write }
  }

  /// A question on its way. The number distinguishes it from an earlier one about the same page: the update that
  /// settles a question is on one socket and its answer on another, so the guest can have unmapped and mapped the page
  /// again, and a queue have asked again, before the first answer is read.
  struct Question: Hashable {
    var key: Key
    var number: UInt64
  }

  enum Verdict: Equatable {
    /// Ask the front-end.
    case ask(Question)
    /// Another walk did, or it is asked later.
    case wait
    /// The front-end said no.
    case refused
  }

  /// What an update means for the open questions.
  enum Meaning: Equatable {
    /// The answer to this question.
    case answer(Question)
    /// The answer to a question from before the last flush: the walk that asked is gone, and the page would stay for
    /// ever (R064).
    case late(Question)
    /// There is no question about any of its pages.
    case unasked
  }

  /// Questions of one queue that are open at most; more are asked when these are settled.
  static let openPerQueue = 4096
  /// What a queue may ask however many others do: enough for a front-end that answers one at a time never to wait for
  /// us.
  static let leastPerQueue = 64
  /// Questions of all queues that are open at most.
  static let openInAll = 1 << 15
  /// A walk for which the table was emptied so often ends in a fault. Others may fill the table meanwhile, so once is
  /// no proof.
  static let evictionsPerWalk = 4

  private struct Record {
    var number: UInt64
    var access: DMAAccess
    var epoch: UInt64
    /// The walk that asked, until it is satisfied.
    var owner: MissWalk?
    var joined: [MissWalk] = []
  }

  private var epoch: UInt64 = 0
  private var asked: UInt64 = 0
  /// Open questions by page, in the order in which they were asked.
  private var records: [UInt64: [Record]] = [:]
  /// The same in the order in which they were asked, and some that are not open any more.
  private var order = FIFO<Question>()
  private var walks: [ObjectIdentifier?: MissWalk] = [:]
  /// Walks that found no room, oldest first, and some that have ended.
  private var starving = FIFO<MissWalk>()
  /// How many of them were woken because there is room now, and have not ended a walk since.
  private var invited = 0
  /// Whether some walk may keep refusals.
  private var keepsRefusals = false
  /// What the walk of a queue may ask.
  let room = MissQuota()

  /// How many walks are known to have found no room, those included that have ended since.
  var inLine: Int { starving.count }
  /// How many questions are open.
  private(set) var count = 0
  /// How many refusals are kept.
  var refusals: Int { walks.values.reduce(0) { $0 + $1.refusals } }
  /// How often a question was examined: the cost of operations.
  private(set) var steps = 0

  // MARK: Queues

  /// What to do about an access that found no mapping.
  mutating func want(_ address: DMAAddress, _ access: DMAAccess, _ queue: (any TranslationWaiter)?) -> Verdict {
    let key = Key(address, access)
    let walk = walk(of: queue)
    steps += 1
    if walk.finds(key) { return .refused }
    if join(key, walk) { return .wait }
    if queue != nil, walk.open >= share { return .wait }
    guard count < Self.openInAll else {
      starve(walk)
      return .wait
    }
    walk.open += 1
    return .ask(open(key, owner: walk))
  }

  /// What to do about a page that no walk waits for yet. A walk that needs it later joins; a refusal is then dropped,
  /// and that walk asks itself. `refused`: a good part of the allowed questions is open, and is left to walks that
  /// wait.
  mutating func prefetch(_ address: DMAAddress, _ access: DMAAccess) -> Verdict {
    let key = Key(address, access)
    steps += 1
    if let open = records[key.page], place(of: key, in: open) != nil { return .wait }
    return count < Self.openInAll / 4 ? .ask(open(key, owner: nil)) : .refused
  }

  private mutating func open(_ key: Key, owner: MissWalk?) -> Question {
    asked += 1
    count += 1
    noteRoom()
    records[key.page, default: []].append(Record(number: asked, access: key.access, epoch: epoch, owner: owner))
    let question = Question(key: key, number: asked)
    order.append(question)
    if order.count > 2 * count + 1024 { dropClosed() }
    return question
  }

  private mutating func walk(of queue: (any TranslationWaiter)?) -> MissWalk {
    let identity = queue.map(ObjectIdentifier.init)
    if let walk = walks[identity] { return walk }
    let walk = MissWalk(queue)
    walks[identity] = walk
    noteRoom()
    return walk
  }

  /// Questions that one queue may have open now.
  private var share: Int { max(Self.leastPerQueue, min(Self.openPerQueue, Self.openInAll / max(1, walks.count))) }

  private func noteRoom() { room.set(count < Self.openInAll ? share : 0) }

  private mutating func starve(_ walk: MissWalk) {
    guard !walk.isStarving, walk.waiter != nil else { return }
    walk.isStarving = true
    starving.append(walk)
    // Chains that come and go while nothing is answered leave nothing behind.
    if starving.count > 2 * walks.count { starving.keep { !$0.hasEnded } }
  }

  private mutating func takeInvitation(of walk: MissWalk) {
    guard walk.isInvited else { return }
    walk.isInvited = false
    invited -= 1
  }

  /// The open question that a walk that needs `key` waits for, if there is one. A reader waits for one about writing,
  /// too, and then checks again: no second question about a page while an answer is due.
  private func place(of key: Key, in open: [Record]) -> Int? {
    let mine = open.lastIndex { $0.epoch == epoch && $0.access == key.access }
    return mine ?? (key.access == .read ? open.lastIndex { $0.epoch == epoch } : nil)
  }

  /// Makes a walk wait for a question that is open already.
  private mutating func join(_ key: Key, _ walk: MissWalk) -> Bool {
    guard let open = records[key.page] else { return false }
    guard let place = place(of: key, in: open) else { return false }
    steps += open.count
    if open[place].owner !== walk, !open[place].joined.contains(where: { $0 === walk }) {
      records[key.page]![place].joined.append(walk)
      walk.open += 1
    }
    return true
  }

  /// A queue's walk is over, and will be repeated when the questions it waits for are settled. False if repeating is
  /// useless: the table was emptied for it again and again, so it needs more room than there is.
  @discardableResult mutating func paused(_ queue: (any TranslationWaiter)?) -> Bool {
    guard let walk = walks[queue.map(ObjectIdentifier.init)] else { return true }
    walk.pause()
    takeInvitation(of: walk)
    return walk.evictions < Self.evictionsPerWalk
  }

  /// A queue's access was made, or given up. Refusals of its other pages, present or future, are dropped.
  mutating func ended(_ queue: (any TranslationWaiter)?) {
    guard let walk = walks.removeValue(forKey: queue.map(ObjectIdentifier.init)) else { return }
    walk.hasEnded = true
    takeInvitation(of: walk)
    noteRoom()
  }

  /// The question could not be sent and never will be. Returns the walks that may ask again.
  @discardableResult mutating func withdraw(_ question: Question) -> [any TranslationWaiter] {
    close(question).map { settle($0) } ?? []
  }

  // MARK: The front-end

  /// What an update for `first` through `last` means.
  mutating func meaning(ofUpdateFrom first: UInt64, through last: UInt64) -> Meaning {
    guard let (page, record) = oldest(first >> 12...last >> 12) else { return .unasked }
    if record.epoch == epoch { return .answer(Question(key: Key(page: page, record.access), number: record.number)) }
    // From before the last flush. If a walk asks the same now, this answer counts for it as well; its own is still to
    // come.
    let question = Question(key: Key(page: page, record.access), number: record.number)
    if records[page]!.contains(where: { $0.epoch == epoch && $0.access == record.access }) { return .answer(question) }
    return .late(question)
  }

  private mutating func oldest(_ pages: ClosedRange<UInt64>) -> (page: UInt64, record: Record)? {
    guard !records.isEmpty else { return nil }
    if pages.count == 1 {
      steps += 1
      return records[pages.lowerBound].map { (pages.lowerBound, $0[0]) }
    }
    while let first = order.first, !isOpen(first) { _ = order.popFirst() }
    // With answers in order this is the first, or there is none in all that is open.
    if pages.count < order.count, !pages.contains(order.first!.key.page) {
      var oldest: (page: UInt64, record: Record)?
      for page in pages {
        steps += 1
        guard let record = records[page]?[0], record.number < oldest?.record.number ?? .max else { continue }
        oldest = (page, record)
      }
      return oldest
    }
    for i in 0..<order.count {
      steps += 1
      let question = order[i]
      guard pages.contains(question.key.page), isOpen(question) else { continue }
      return (question.key.page, records[question.key.page]!.first { $0.number == question.number }!)
    }
    return nil
  }

  private func isOpen(_ question: Question) -> Bool {
    records[question.key.page]?.contains { $0.number == question.number } == true
  }

  private mutating func dropClosed() {
    let open = records
    order.keep { question in open[question.key.page]?.contains { $0.number == question.number } == true }
  }

  /// An update for `first` through `last` is done with: it was the answer to `question`, or to none, and `granted` is
  /// allowed on its pages now. `isNews`: not only what was so before. Returns the walks that have to try again.
  mutating func updated(
    from first: UInt64, through last: UInt64, granted: DMAPermissions, answering question: Question?,
    isNews: Bool = true
  ) -> [any TranslationWaiter] {
    var woken: [any TranslationWaiter] = []
    if let question, let record = close(question) { woken += settle(record) }
    guard isNews else { return woken }
    let pages = first >> 12...last >> 12
    forgetRefusals(pages)
    // Other walks that asked for what is granted now need not wait for an answer. The question stays open: its update
    // is to come.
    if pages.count <= records.count {
      for page in pages { satisfy(page, granted, &woken) }
    } else {
      for page in Array(records.keys) where pages.contains(page) { satisfy(page, granted, &woken) }
    }
    return woken
  }

  private mutating func satisfy(_ page: UInt64, _ granted: DMAPermissions, _ woken: inout [any TranslationWaiter]) {
    steps += 1
    guard let open = records[page] else { return }
    for i in open.indices where open[i].owner != nil || !open[i].joined.isEmpty {
      guard open[i].epoch == epoch, granted.allows(open[i].access) else { continue }
      woken += settle(open[i])
      records[page]![i].owner = nil
      records[page]![i].joined = []
    }
  }

  /// The table was full and was emptied for a page that this question is about.
  mutating func evicted(for question: Question) {
    guard let record = records[question.key.page]?.first(where: { $0.number == question.number }) else { return }
    record.owner?.evictions += 1
    for walk in record.joined { walk.evictions += 1 }
  }

  /// The pages, by their addresses, that are asked for and touch `first` through `last`.
  func openPages(from first: UInt64, through last: UInt64) -> [UInt64] {
    let pages = first >> 12...last >> 12
    func isWanted(_ page: UInt64) -> Bool { records[page]?.contains { $0.epoch == epoch } == true }
    if pages.count <= records.count { return pages.filter(isWanted).map { $0 << 12 } }
    return records.keys.filter { pages.contains($0) && isWanted($0) }.map { $0 << 12 }
  }

  /// The front-end finished with a question. If it is not open any more, its update came first, and its answer says
  /// nothing.
  mutating func answered(_ question: Question) -> [any TranslationWaiter] {
    guard let record = close(question) else { return [] }
    if record.epoch == epoch, let owner = record.owner, !owner.hasEnded {
      owner.refuse(question.key)
      keepsRefusals = true
    }
    return settle(record)
  }

  /// Mappings were taken back: refusals there are history.
  mutating func invalidated(from first: UInt64, through last: UInt64) { forgetRefusals(first >> 12...last >> 12) }

  private mutating func forgetRefusals(_ pages: ClosedRange<UInt64>) {
    guard keepsRefusals else { return }
    keepsRefusals = false
    for walk in walks.values {
      steps += 1
      walk.forget(pages)
      if walk.refusals > 0 { keepsRefusals = true }
    }
  }

  /// Removes all waiting walks, and returns them. Questions stay open, so that their answers are known to be late.
  mutating func flush() -> [any TranslationWaiter] {
    epoch += 1
    let woken = walks.values.compactMap { $0.waiter }
    for walk in walks.values { walk.hasEnded = true }
    walks = [:]
    starving.removeAll()
    invited = 0
    keepsRefusals = false
    noteRoom()
    return woken
  }

  // MARK: Records

  /// Ends a question; nil if it is not open.
  private mutating func close(_ question: Question) -> Record? {
    guard let place = records[question.key.page]?.firstIndex(where: { $0.number == question.number }) else {
      return nil
    }
    steps += 1
    count -= 1
    noteRoom()
    while let first = order.first, first.number == question.number || !isOpen(first) { _ = order.popFirst() }
    if records[question.key.page]!.count == 1 { return records.removeValue(forKey: question.key.page)![0] }
    return records[question.key.page]!.remove(at: place)
  }

  /// Releases all walks that wait for a question. Returns those that wait for no other.
  private mutating func settle(_ record: Record) -> [any TranslationWaiter] {
    var woken: [any TranslationWaiter] = []
    func release(_ walk: MissWalk) {
      walk.open -= 1
      if walk.open == 0, !walk.hasEnded, let waiter = walk.waiter { woken.append(waiter) }
    }
    if let owner = record.owner { release(owner) }
    for walk in record.joined { release(walk) }
    invite(&woken)
    return woken
  }

  /// Wakes walks that found no room, as far as there is a share for each.
  private mutating func invite(_ woken: inout [any TranslationWaiter]) {
    // At least one for an answer when half is free: a walk that was woken and does not ask must not block the others
    // for ever.
    var isDue = count <= Self.openInAll / 2
    let share = share
    while let walk = starving.first, isDue || count + (invited + 1) * share <= Self.openInAll {
      _ = starving.popFirst()
      guard !walk.hasEnded, let waiter = walk.waiter else { continue }
      isDue = false
      walk.isStarving = false
      walk.isInvited = true
      invited += 1
      woken.append(waiter)
    }
  }
}
