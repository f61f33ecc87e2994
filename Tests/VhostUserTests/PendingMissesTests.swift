import DMA
import Testing

@testable import VhostUserBackend

@Suite("Who waits for which translation") final class PendingMissesTests {
  private var misses = PendingMisses()
  private let bell = RungBell()

  private func want(_ address: UInt64, _ access: DMAAccess, _ queue: RungBell? = nil) -> PendingMisses.Verdict {
    misses.want(DMAAddress(address), access, queue ?? bell)
  }

  private func ask(_ address: UInt64, _ access: DMAAccess, _ queue: RungBell? = nil) -> PendingMisses.Question? {
    if case .ask(let question) = want(address, access, queue) { question } else { nil }
  }

  /// What the control thread does with an update of the pages from `first` through `last`, which says `permissions`.
  @discardableResult private func update(
    _ first: UInt64, _ last: UInt64? = nil, _ permissions: DMAPermissions = .readWrite
  ) -> [any TranslationWaiter] {
    let last = last ?? first | 4095
    switch misses.meaning(ofUpdateFrom: first, through: last) {
    case .answer(let question):
      let granted = permissions.intersection(question.key.access == .read ? .read : .write)
      return misses.updated(from: first, through: last, granted: granted, answering: granted.isEmpty ? nil : question)
    case .late(let question):
      return misses.updated(from: first, through: last, granted: [], answering: question, isNews: false)
    case .unasked: return misses.updated(from: first, through: last, granted: permissions, answering: nil)
    }
  }

  private func isLate(_ page: UInt64) -> Bool {
    if case .late = misses.meaning(ofUpdateFrom: page, through: page | 4095) { true } else { false }
  }

  @Test("Queues that want the same page share a question, and all are woken (R115)")
  func shared() throws {
    let (a, b) = (RungBell(), RungBell())
    let question = try #require(ask(0x1000, .write, a))
    #expect(want(0x1fff, .write, b) == .wait)
    // A reader waits for a pending answer about the page before it asks.
    #expect(want(0x1800, .read, b) == .wait)
    #expect(update(0x1000).count == 2)
    #expect(misses.answered(question).isEmpty && misses.count == 0)
  }

  @Test("A queue that waits for several pages is woken by the last answer")
  func together() throws {
    for page in 1...3 as ClosedRange<UInt64> { _ = try #require(ask(page << 12, .read)) }
    #expect(update(0x1000, nil, .read).isEmpty)
    #expect(update(0x3000, nil, .read).isEmpty)
    #expect(update(0x2000, nil, .read).count == 1)
  }

  @Test("Two refused pages of one chain end in one fault, and the next chain asks anew")
  func twoRefusals() throws {
    let first = try #require(ask(0x1000, .read))
    let second = try #require(ask(0x2000, .write))
    #expect(misses.answered(first).isEmpty)
    #expect(misses.answered(second).count == 1)
    // However often the chain is walked before it is completed.
    for _ in 0..<3 {
      #expect(want(0x1000, .read) == .refused)
      #expect(want(0x2000, .write) == .refused)
    }
    misses.ended(bell)
    #expect(ask(0x1000, .read) != nil && ask(0x2000, .write) != nil)
  }

  @Test("A refusal that comes after its chain has ended is not kept")
  func lateRefusal() throws {
    let first = try #require(ask(0x1000, .read))
    let second = try #require(ask(0x2000, .write))
    _ = misses.answered(first)
    misses.ended(bell)
    // The next chain waits for this page, too. It is woken, but does not get the answer to another question.
    #expect(want(0x2000, .write) == .wait)
    #expect(misses.answered(second).count == 1)
    let third = try #require(ask(0x2000, .write))
    misses.ended(bell)
    #expect(misses.answered(third).isEmpty, "nothing waits")
    #expect(ask(0x2000, .write) != nil)
  }

  @Test("A reader that waited for a write that is refused asks for itself, and its later writes are not refused for it")
  func readerOfRefusedWrite() throws {
    let (reader, writer) = (RungBell(), RungBell())
    let question = try #require(ask(0x1000, .write, writer))
    #expect(want(0x1000, .read, reader) == .wait)
    #expect(misses.answered(question).count == 2)
    #expect(want(0x1000, .write, writer) == .refused)
    let read = try #require(ask(0x1000, .read, reader))
    #expect(ask(0x1000, .write, reader) != nil)
    _ = misses.answered(read)
    #expect(want(0x1000, .read, reader) == .refused)
  }

  @Test("A refusal is one queue's; an invalidation or a mapping ends it")
  func whose() throws {
    let (a, b) = (RungBell(), RungBell())
    let question = try #require(ask(0x1000, .read, a))
    _ = misses.answered(question)
    let other = try #require(ask(0x1000, .read, b))
    update(0x1000, nil, .read)
    _ = misses.answered(other)
    #expect(ask(0x1000, .read, a) != nil)
    let third = try #require(ask(0x5000, .read, a))
    _ = misses.answered(third)
    misses.invalidated(from: 0, through: .max)
    #expect(ask(0x5000, .read, a) != nil)
  }

  @Test("An answer belongs to its question, not to a newer one about the same page")
  func serials() throws {
    let old = try #require(ask(0x1000, .read))
    update(0x1000, nil, .read)
    // Taken back before the old answer arrived.
    misses.invalidated(from: 0x1000, through: 0x1fff)
    let new = try #require(ask(0x1000, .read))
    #expect(misses.answered(old).isEmpty)
    #expect(want(0x1000, .read) == .wait)
    #expect(misses.answered(new).count == 1)
    #expect(want(0x1000, .read) == .refused)
  }

  @Test("After a flush, answers to old questions are ignored and their updates are late, once each (R064)")
  func flush() throws {
    let old = try #require(ask(0x1000, .read))
    #expect(misses.flush().count == 1)
    #expect(isLate(0x1000))
    #expect(!isLate(0x2000))
    // A new access waits for the page: the update answers it as well.
    let new = try #require(ask(0x1000, .read))
    #expect(!isLate(0x1000))
    #expect(misses.answered(old).isEmpty)
    #expect(misses.answered(new).count == 1)
    #expect(!isLate(0x1000))
    #expect(misses.count == 0)
  }

  @Test(
    "An update is the answer to what was asked first about its page: it grants that, and the other access waits for its own (R104)",
    arguments: [
      (DMAAccess.read, DMAAccess.write), (.write, .read),
    ])
  func bothWays(_ first: DMAAccess, _ second: DMAAccess) throws {
    let (a, b) = (RungBell(), RungBell())
    let question = try #require(ask(0x1000, first, a))
    // A queue that reads and then writes asks at once; one that reads what another writes waits and then checks again.
    let other = ask(0x1000, second, b)
    #expect((other != nil) == (first == .read))
    #expect(misses.meaning(ofUpdateFrom: 0x1000, through: 0x1fff) == .answer(question))
    #expect(update(0x1000).count == (other == nil ? 2 : 1))
    let left = try #require(other ?? ask(0x1000, second, b))
    #expect(misses.meaning(ofUpdateFrom: 0x1000, through: 0x1fff) == .answer(left))
    #expect(misses.answered(left).count == 1)
    #expect(want(0x1000, second, b) == .refused)
  }

  @Test(
    "An update of many pages grants on all of them what was asked first about one; the others' own are still to come")
  func wide() throws {
    let bells = (0..<4).map { _ in RungBell() }
    let first = try #require(ask(0x2000, .read, bells[0]))
    let second = try #require(ask(0x1000, .read, bells[1]))
    let third = try #require(ask(0x3000, .write, bells[2]))
    let outside = try #require(ask(0x9000, .read, bells[3]))
    #expect(misses.meaning(ofUpdateFrom: 0x1000, through: 0x4fff) == .answer(first))
    #expect(update(0x1000, 0x4fff).count == 2, "both readers")
    #expect(misses.meaning(ofUpdateFrom: 0x1000, through: 0x4fff) == .answer(second))
    #expect(update(0x1000, 0x4fff).isEmpty)
    #expect(misses.meaning(ofUpdateFrom: 0x1000, through: 0x4fff) == .answer(third))
    #expect(update(0x1000, 0x4fff).count == 1)
    #expect(misses.meaning(ofUpdateFrom: 0x1000, through: 0x4fff) == .unasked)
    #expect(misses.answered(outside).count == 1 && misses.count == 0)
  }

  @Test("Refusals serve one walk, and end with the queue's access: rewriting a chain leaves nothing behind")
  func rewritten() throws {
    for round in 0..<100 as Range<UInt64> {
      let questions = try (0..<50).map { try #require(ask((round * 50 + $0) << 12, .read)) }
      // The walk is over and waits; everything is refused; the next walk is of another chain.
      misses.paused(bell)
      var woken = 0
      for question in questions { woken += misses.answered(question).count }
      #expect(woken == 1 && misses.count == 0)
      #expect(misses.refusals <= 100)
    }
    misses.ended(bell)
    #expect(misses.refusals == 0)
  }

  @Test("A walk that finds a refusal finds it however long it waits for another page, and the next chain does not")
  func keptForTheWalk() throws {
    let first = try #require(ask(0x1000, .read))
    let second = try #require(ask(0x2000, .read))
    misses.paused(bell)
    _ = misses.answered(first)
    // Kicked meanwhile, it looks again.
    #expect(want(0x1000, .read) == .refused)
    #expect(want(0x2000, .read) == .wait)
    misses.paused(bell)
    #expect(misses.answered(second).count == 1)
    #expect(want(0x2000, .read) == .refused)
    misses.ended(bell)
    #expect(ask(0x2000, .read) != nil)
  }

  @Test(
    "A queue has so many questions open and no more, all queues together so many, and each is woken to ask for the rest"
  )
  func bounded() throws {
    let bells = (0...PendingMisses.openInAll / PendingMisses.openPerQueue).map { _ in RungBell() }
    var questions: [[PendingMisses.Question]] = []
    for (n, bell) in bells.dropLast().enumerated() {
      let base = UInt64(n) << 32
      questions.append(
        try (0..<UInt64(PendingMisses.openPerQueue)).map { try #require(ask(base + $0 << 12, .read, bell)) })
      #expect(want(base + 1 << 31, .read, bell) == .wait)
    }
    #expect(misses.count == PendingMisses.openInAll)
    let last = bells[bells.count - 1]
    #expect(misses.room.left == 0)
    #expect(want(1 << 40, .read, last) == .wait)
    var woken: [ObjectIdentifier] = []
    for half in questions.prefix(questions.count / 2) {
      for question in half { woken += misses.answered(question).map { ObjectIdentifier($0) } }
    }
    // There is room for one more before the first has all its answers.
    #expect(woken == [ObjectIdentifier(last)] + bells.prefix(questions.count / 2).map { ObjectIdentifier($0) })
    #expect(ask(1 << 40, .read, last) != nil)
  }

  @Test(
    "Queues that ask at the same time have equal parts; who found no room is woken when there is some, in turn, and no more of them than it is enough for"
  )
  func parts() throws {
    let greedy = (0..<8).map { _ in RungBell() }
    var open: [PendingMisses.Question] = []
    for (n, bell) in greedy.enumerated() {
      for page in 0..<UInt64(PendingMisses.openPerQueue) {
        open.append(try #require(ask(UInt64(n) << 32 + page << 12, .read, bell)))
      }
    }
    // Chains that come and go while there is no room are not kept.
    let others = (0..<120).map { _ in RungBell() }
    for _ in 0..<100 {
      for (n, bell) in others.enumerated() {
        #expect(want(UInt64(n + 8) << 32, .read, bell) == .wait)
        misses.ended(bell)
      }
    }
    #expect(misses.inLine <= 2 * 9)
    for (n, bell) in others.enumerated() {
      #expect(want(UInt64(n + 8) << 32, .read, bell) == .wait)
      misses.paused(bell)
    }
    let part = PendingMisses.openInAll / 128
    var invited: [ObjectIdentifier] = []
    for question in open.prefix(10 * part) { invited += misses.answered(question).map { ObjectIdentifier($0) } }
    #expect(invited == others.prefix(10).map { ObjectIdentifier($0) })
    // Each has its part and no more, and so there is room again.
    for (n, bell) in others.prefix(10).enumerated() {
      #expect(misses.room.left == part)
      for page in 0..<UInt64(part) { #expect(ask(UInt64(n + 8) << 32 + page << 12, .read, bell) != nil) }
      #expect(want(UInt64(n + 8) << 32 + 1 << 30, .read, bell) == .wait)
      misses.paused(bell)
    }
    #expect(misses.count == PendingMisses.openInAll && misses.room.left == 0)
    // Some are invited and never come. The others are not held up by them for ever.
    for question in open.dropFirst(10 * part) { invited += misses.answered(question).map { ObjectIdentifier($0) } }
    #expect(Set(invited).isSuperset(of: others.map { ObjectIdentifier($0) }))
    #expect(misses.inLine == 0)
  }

  @Test(
    "A question costs the same among few and among many, in any order and width of its answers",
    arguments: [1, 512, 4096] as [UInt64])
  func constant(_ width: UInt64) throws {
    func steps(_ count: UInt64) throws -> Int {
      misses = PendingMisses()
      for round in 0..<4 as Range<UInt64> {
        let base = round << 40
        let questions = try (0..<count).map {
          try #require(ask(base + $0 << 12, $0 % 2 == 0 ? .read : .write))
        }
        misses.paused(bell)
        var woken = 0
        for (n, question) in questions.enumerated() {
          let first = question.key.page / width * width << 12
          let last = first + (width << 12 - 1)
          let meaning = misses.meaning(ofUpdateFrom: first, through: last)
          #expect(meaning == .answer(question))
          // The front-end sends the whole mapping each time, and it adds something once for each access.
          let access: DMAPermissions = question.key.access == .read ? .read : .write
          let isNews = UInt64(n) % width < 2
          woken +=
            misses.updated(from: first, through: last, granted: access, answering: question, isNews: isNews).count
          woken += misses.answered(question).count
        }
        #expect(woken == 1 && misses.count == 0)
        misses.ended(bell)
      }
      return misses.steps
    }
    let few = try steps(256)
    let many = try steps(4096)
    #expect(Double(many) / 4096 <= 1.5 * Double(few) / 256, "\(many) steps for 4096 questions, \(few) for 256")
  }

  @Test("A walk for which the table was emptied again and again is told that there is no room")
  func exhausted() throws {
    let other = RungBell()
    for n in 0..<UInt64(PendingMisses.evictionsPerWalk) {
      let question = try #require(ask(n << 12, .read))
      misses.evicted(for: question)
      update(n << 12)
      #expect(misses.paused(bell) == (n + 1 < PendingMisses.evictionsPerWalk))
    }
    #expect(ask(0, .read, other) != nil && misses.paused(other))
    misses.ended(bell)
    #expect(want(0, .read) == .wait && misses.paused(bell))
  }
}
