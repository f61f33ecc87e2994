import DMA
import HostIO
import Logging
import Synchronization
import Testing
import Virtio
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

/// Each of many queues has one chain of this many pages that were not asked for.
private let pages = 20_000

/// Many queues over one space, whose rings are mapped and whose chains are cold; a front-end that answers when the test
/// says so. All on one thread, so that every step counts.
private final class Crowd {
  private final class Asked: Sendable {
    let all = Mutex(FIFO<(message: IOTLBMessage, question: PendingMisses.Question)>())
  }
  private final class Member {
    var queue: Virtqueue
    let bell: RungBell
    init(_ queue: consuming Virtqueue, _ bell: RungBell) {
      self.queue = queue
      self.bell = bell
    }
  }
  private static let frontend: UInt64 = 0x7e00_0000_0000
  private static func base(_ queue: Int) -> UInt64 { UInt64(queue + 1) << 32 }

  let space: IOTLBSpace
  private let table = MemoryTable()
  private var memory: GuestMemory { table.memory }
  private let asked = Asked()
  private var members: [Int: Member] = [:]
  /// Questions of each queue so far.
  private(set) var questions: [Int]
  private(set) var rounds = 0
  private(set) var popped = 0

  init(queues: Int) throws {
    try table.add(0, frontend: Self.frontend, byteCount: 0x5000)
    let asked = asked
    space = IOTLBSpace(table) { message, question in
      if let question { asked.all.withLock { $0.append((message, question)) } }
      return true
    }
    questions = [Int](repeating: 0, count: queues)
    // One ring for all of them, each with addresses of its own. Its one chain is a buffer to write to.
    memory.write(UInt16(1).bytes, at: GuestAddress(0x1002))
    for index in 0..<queues {
      let (ring, bell) = (Self.base(index), RungBell())
      try space.apply(.update(ring, 0x3000, to: Self.frontend))
      let layout = QueueLayout(
        size: 2, descriptorArea: DMAAddress(ring), driverArea: DMAAddress(ring + 0x1000),
        deviceArea: DMAAddress(ring + 0x2000))
      let queue = try Virtqueue(index: index, layout: layout, features: .version1, in: space, waking: bell)
      members[index] = Member(queue, bell)
    }
  }

  /// What was done with questions so far: a lock is taken for each.
  var steps: Int { space.state.withLock { $0.misses.steps } }
  var open: Int { space.state.withLock { $0.misses.count } }
  var evenPart: Int { max(PendingMisses.leastPerQueue, PendingMisses.openInAll / members.count) }

  /// A round of a queue. The ring's memory is everybody's: what is in it is this one's chain.
  func look(_ index: Int) throws {
    rounds += 1
    memory.write(RawFrontend.descriptor(Self.base(index), 0x1000_0000, UInt32(pages << 12), 2, 0), at: GuestAddress(0))
    let member = members[index]!
    member.bell.reset()
    try member.queue.beginRound()
    if let chain = try member.queue.next() {
      popped += 1
      member.queue.complete(chain, written: 0)
    }
    member.queue.endRound()
  }

  /// A round of every queue.
  func lookAll() throws { for index in members.keys.sorted() { try look(index) } }

  /// Answers the oldest questions; queues that are woken have their round between two answers.
  func answer(_ count: Int) throws {
    for _ in 0..<count {
      guard let (message, question) = asked.all.withLock({ $0.popFirst() }) else { return }
      let page = message.address & ~4095
      questions[Int(page >> 32) - 1] += 1
      try space.apply(.update(page, 4096, to: Self.frontend + 0x3000))
      space.answered(question)
      for (index, member) in members where member.bell.isRung { try look(index) }
    }
  }

  /// Another memory table is set: what was known is forgotten, and queues look again.
  func flush() throws {
    space.flush()
    for (index, member) in members where member.bell.isRung { try look(index) }
  }
}

/// A back-end with many queues, each with one cold chain, and a front-end that answers one question at a time, as QEMU
/// does.
private final class CrowdedFrontend {
  let raw: RawFrontend
  private let kicks: [EventFD]

  init(queues: Int) throws {
    raw = try RawFrontend.sharing([.version1, .accessPlatform, Features(bit: 12)], queues: queues)
    kicks = try (0..<queues).map { _ in try EventFD() }
    let rings = RawFrontend.iova
    try raw.must(.iotlb(raw.update(rings, size: 0x10000)))
    for (index, kick) in kicks.enumerated() {
      let (number, at) = (UInt32(index), UInt64(index) * 256)
      raw.poke(RawFrontend.descriptor(1 << 40 + UInt64(index) << 32, 0, UInt32(pages << 12), 2, 0), Int(at))
      raw.poke(UInt16(0).bytes + UInt16(1).bytes + UInt16(0).bytes, Int(at) + 64)
      try raw.must(.setVringSize(VringState(number, 2)))
      try raw.must(
        .setVringAddress(
          VringAddress(
            index: number, descriptorArea: rings + at, driverArea: rings + at + 64, deviceArea: rings + at + 128, log: 0
          )))
      kick.signal()
      try raw.must(.setVringKick(VringDescriptor(UInt8(index))), [kick.rawValue])
      try raw.must(.setVringEnable(VringState(number, 1)))
    }
  }

  /// Answers so many questions; how many a second.
  func answer(_ count: Int) throws -> Double {
    let begun = ContinuousClock.now
    for _ in 0..<count {
      guard case (.iotlb(let message), let needsReply)? = try raw.heard() else { break }
      try raw.must(.iotlb(raw.update(message.address, to: message.address >= 1 << 40 ? 0x20000 : nil)))
      if needsReply { try raw.answer(with: 0) }
    }
    return Double(count) / (begun.duration(to: .now) / .seconds(1))
  }

  func invalidate(_ address: UInt64) throws {
    try raw.must(.iotlb(.invalidate(address, 4096)))
  }

  func stop(_ queue: Int) throws { _ = try raw.ask(.getVringBase(VringState(UInt32(queue), 0))) }
}

@Suite("Many queues of many cold pages", .serialized, .timeLimit(.minutes(10))) struct ConvoyTests {
  @Test(
    "A walk that may ask no more stops there, however many pages are left of its chain and however often it is made")
  func stops() throws {
    let crowd = try Crowd(queues: 256)
    let before = crowd.steps
    try crowd.lookAll()
    #expect(crowd.open == PendingMisses.openInAll)
    let first = crowd.steps - before
    #expect(first <= PendingMisses.openInAll + 8 * 256, "\(first) steps for \(crowd.open) questions")
    // Kicked again and again, with nothing answered: there is nothing to be had.
    for _ in 0..<4 {
      let before = crowd.steps
      try crowd.lookAll()
      #expect(crowd.steps - before <= 4 * 256)
    }
    // Everybody asks anew, and what was asked before is still to be answered.
    let flushed = crowd.steps
    try crowd.flush()
    #expect(crowd.steps - flushed <= 16 * 256)
  }

  @Test("Queues have equal parts of what may be asked, and an answer costs as much for 256 of them as for one")
  func parts() throws {
    func cost(_ queues: Int) throws -> Double {
      let crowd = try Crowd(queues: queues)
      try crowd.lookAll()
      // Those that came first asked for more, and had it answered.
      try crowd.answer(PendingMisses.openInAll)
      let (steps, rounds, before) = (crowd.steps, crowd.rounds, crowd.questions)
      let count = 2 * PendingMisses.openInAll
      try crowd.answer(count)
      let each = zip(crowd.questions, before).map { $0 - $1 }
      #expect(each.min()! > 0 && each.max()! - each.min()! <= 2 * crowd.evenPart, "\(each)")
      #expect(crowd.rounds - rounds <= 2 * count / min(PendingMisses.openPerQueue, crowd.evenPart))
      return Double(crowd.steps - steps) / Double(count)
    }
    let (one, many) = (try cost(8), try cost(256))
    #expect(many <= 1.25 * one, "an answer costs \(many) steps with 256 queues and \(one) with 8")
  }

  @Test(
    "With 256 queues of cold chains unmaps, stops and memory tables have their turn soon, whether anything is answered or not",
    arguments: [false, true])
  func turns(_ answers: Bool) throws {
    // Other tests want the processors too: what holds once holds by the rules, and without them it never does.
    let bound = Duration.milliseconds(250)
    var best = Duration.seconds(60)
    for _ in 0..<3 where best > bound {
      let crowd = try CrowdedFrontend(queues: 256)
      var longest = Duration.zero
      func time(_ body: () throws -> Void) throws {
        if answers { _ = try crowd.answer(500) }
        longest = max(longest, try ContinuousClock().measure(body))
      }
      for n in 0..<4 { try time { try crowd.invalidate(UInt64(n) << 12) } }
      for n in 0..<4 { try time { try crowd.stop(n) } }
      try time { try crowd.raw.share() }
      best = min(best, longest)
    }
    #expect(best <= bound, "one of them took \(best)")
  }

  @Test("A front-end has as many answers taken a second by 256 queues as by one, within a factor of two")
  func rate() throws {
    var best = 0.0
    for _ in 0..<3 where best < 0.5 {
      let one = try CrowdedFrontend(queues: 1).answer(4000)
      let crowd = try CrowdedFrontend(queues: 256)
      // Past what the first ones asked before the others came.
      _ = try crowd.answer(2000)
      let many = try crowd.answer(4000)
      best = max(best, many / one)
    }
    #expect(best >= 0.5, "\(best) of one queue's")
  }
}
