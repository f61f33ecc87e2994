import DMA
import HostIO
import Synchronization
import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

/// A split ring with one chain of many pages that were not asked for yet, and a front-end that answers each question.
private final class ColdRig {
  static let ringAt: UInt64 = 0x10_0000
  static let dataAt: UInt64 = 0x80_0000_0000
  static let frontend: UInt64 = 0x7e00_0000_0000
  static let ringBytes: UInt64 = 1 << 20

  private let regions = MemoryTable()
  let memory: GuestMemory
  let space: IOTLBSpace
  private let bell = RungBell()
  private let questions = Asked()
  private var queue: Virtqueue
  private(set) var asked = 0
  private(set) var rounds = 0
  private(set) var mostOpen = 0
  /// Why the last chain popped had no memory.
  private(set) var reason: DMAFault.Reason?
  private let step: UInt64
  private let each: Int
  private var posted: UInt16 = 0

  /// - Parameter pages: in as many descriptors of an indirect table as `pages` can be divided into by `each`; each
  ///   begins `step`
  ///   pages after the one before it.
  init(pages: Int, each: Int, step: Int? = nil, nodes: Int = 1 << 15, servesOneChain: Bool = false) throws {
    memory = regions.memory
    let dataBytes = UInt64(pages) << 12
    try regions.add(0, frontend: Self.frontend, byteCount: Self.ringBytes)
    try regions.add(1 << 32, frontend: Self.frontend + Self.ringBytes, byteCount: dataBytes)
    let questions = questions
    space = IOTLBSpace(regions, maxNodes: nodes, servesOneChain: servesOneChain, ask: { questions.take($0, $1) })
    let count = pages / each
    self.step = UInt64(step ?? each) << 12
    self.each = each
    var table: [UInt8] = []
    for n in 0..<count {
      table += (Self.dataAt + UInt64(n) * self.step).bytes + UInt32(each << 12).bytes
      table += UInt16(n + 1 < count ? 3 : 2).bytes + UInt16(truncatingIfNeeded: n + 1).bytes
    }
    memory.write(table, at: GuestAddress(0x4000))
    queue = try Virtqueue(
      index: 0,
      layout: QueueLayout(
        size: 2, descriptorArea: DMAAddress(Self.ringAt), driverArea: DMAAddress(Self.ringAt + 0x1000),
        deviceArea: DMAAddress(Self.ringAt + 0x2000)),
      features: [.version1, .indirectDescriptors], in: space, waking: bell)
    try post(count)
  }

  /// Maps the ring and the table, and a page that is innocent.
  func mapRing() throws {
    try space.apply(.update(Self.ringAt, 0x20000, to: Self.frontend))
  }

  /// What is kept of questions and refusals.
  var kept: (open: Int, refusals: Int) { space.state.withLock { ($0.misses.count, $0.misses.refusals) } }

  /// Ends the queue.
  func end() -> IOTLBSpace {
    queue = try! Virtqueue(
      index: 0,
      layout: QueueLayout(size: 2, descriptorArea: DMAAddress(0), driverArea: DMAAddress(0), deviceArea: DMAAddress(0)),
      features: [.version1], in: space)
    return space
  }

  /// A round that finds the chain's pages missing, after which all questions are refused.
  func refused() throws {
    try queue.beginRound()
    let chain = try queue.next()
    let isNone = chain == nil
    _ = consume chain
    #expect(isNone)
    queue.endRound()
    for (_, question) in questions.take() { space.answered(question) }
  }

  /// The driver makes another chain of the one that waits: the first descriptor of the table, at an address of its
  /// choice.
  func rewrite(to address: UInt64) {
    memory.write(address.bytes, at: GuestAddress(0x4000))
    memory.write(UInt32(16).bytes, at: GuestAddress(8))
    memory.write(UInt16(2).bytes, at: GuestAddress(0x400c))
  }

  /// Makes a chain of the first descriptors of the table available.
  func post(_ count: Int) throws {
    memory.write(UInt16(2).bytes, at: GuestAddress(0x4000 + UInt64(count - 1) * 16 + 12))
    memory.write(
      (Self.ringAt + 0x4000).bytes + UInt32(count * 16).bytes + UInt16(4).bytes + UInt16(0).bytes, at: GuestAddress(0))
    posted += 1
    memory.write(UInt16(0).bytes + posted.bytes, at: GuestAddress(0x1000))
  }

  /// Rounds of the queue, and answers of the front-end between them, until the chain is popped. Its bytes.
  func popped() throws -> Int {
    while rounds < 1000 {
      rounds += 1
      bell.reset()
      try queue.beginRound()
      if let chain = try queue.next() {
        let bytes = chain.writable.byteCount
        reason = chain.fault?.reason
        queue.complete(chain, written: 0)
        queue.endRound()
        return bytes
      }
      queue.endRound()
      let open = questions.take()
      mostOpen = max(mostOpen, open.count)
      asked += open.count
      for (message, question) in open {
        let page = message.address & ~4095
        let place = page >= Self.dataAt ? place(page - Self.dataAt) : page - Self.ringAt
        try space.apply(.update(page, 4096, to: Self.frontend + place))
        space.answered(question)
      }
      try #require(bell.isRung)
    }
    return 0
  }

  /// Where the page at `offset` from the first one is in the front-end's memory.
  private func place(_ offset: UInt64) -> UInt64 { Self.ringBytes + offset / step * UInt64(each) << 12 + offset % step }
}

@Suite("Requests of many cold pages", .serialized) struct ColdPagesTests {
  private final class Shared: Sendable {
    let state: Mutex<Outcome>
    init(_ outcome: Outcome) { state = Mutex(outcome) }
  }
  private struct Outcome: Sendable {
    var bytes = 0
    var asked = 0
    var rounds = 0
    var mostOpen = 0
    var error = ""
  }

  /// Processor time of one request, the least of two, so that what else the machine does counts little.
  private func cost(_ pages: Int, each: Int) throws -> Duration {
    var least = Duration.seconds(1000)
    for _ in 0..<2 {
      let outcome = Shared(Outcome())
      let thread = try WorkerThread(name: "cold", moving: ColdRig(pages: pages, each: each)) { rig in
        var one = Outcome()
        do { one.bytes = try rig.popped() } catch { one.error = "\(error)" }
        (one.asked, one.rounds, one.mostOpen) = (rig.asked, rig.rounds, rig.mostOpen)
        outcome.state.withLock { $0 = one }
      }
      thread.join()
      let one = outcome.state.withLock { $0 }
      #expect(one.bytes == pages << 12 && one.error == "")
      #expect(one.mostOpen <= PendingMisses.openPerQueue)
      #expect(one.asked >= pages && one.asked <= pages + pages / each / 256 + 8, "each page is asked for once")
      #expect(one.rounds <= pages / PendingMisses.openPerQueue + 6)
      least = min(least, thread.cpuTime)
    }
    return least
  }

  @Test(
    "64 Ki cold pages in one request cost no more a page than 1 Ki, in one descriptor and in many",
    .timeLimit(.minutes(10)), arguments: [1, 256])
  func linear(each: Int) throws {
    // A table has 32768 descriptors at most, and a chain 65536 pieces.
    let many = each == 1 ? 32 * 1024 : 64 * 1024
    var ratio = 0.0
    for _ in 0..<5 {
      let few = try cost(1024, each: each)
      let all = try cost(many, each: each)
      ratio = (all / Double(many / 1024)) / few
      if ratio <= 1.5 { return }
    }
    #expect(ratio <= 1.5, "a page costs \(ratio) times what it costs among 1024")
  }

  @Test(
    "A chain of more pages than there is room for ends in one fault after a bounded number of tries, and the next chain works (R117)",
    arguments: [false, true])
  func tooMuch(servesOneChain: Bool) throws {
    // A page of each 2 MiB, so that each takes a node of the table's.
    let rig = try ColdRig(pages: 200, each: 1, step: 512, nodes: 64, servesOneChain: servesOneChain)
    #expect(try rig.popped() == 0 && rig.reason == .exhausted && rig.space.statistics.faults == 1)
    #expect(rig.asked <= (PendingMisses.evictionsPerWalk + 1) * 256 && rig.rounds < 50)
    try rig.post(3)
    #expect(try rig.popped() == 3 * 4096 && rig.reason == nil)
  }

  @Test("A chain that is rewritten while its misses are refused leaves nothing behind, however often (R064)")
  func rewritten() throws {
    let rig = try ColdRig(pages: 64, each: 64)
    try rig.mapRing()
    for round in 0..<50 {
      if round > 0 { try rig.post(1) }
      rig.rewrite(to: ColdRig.dataAt)
      try rig.refused()
      #expect(rig.kept.open == 0 && rig.kept.refusals > 0)
      rig.rewrite(to: ColdRig.ringAt + 0x10000)
      let bytes = try rig.popped()
      #expect(bytes > 0 && rig.reason == nil && rig.kept == (0, 0))
    }
  }

  @Test("What a chain was refused is told to it, and to no other; a queue that ends takes it along")
  func ended() throws {
    let rig = try ColdRig(pages: 64, each: 64)
    try rig.mapRing()
    try rig.refused()
    let refused = try rig.popped()
    #expect(refused == 0 && rig.reason == .unmapped && rig.kept == (0, 0) && rig.space.statistics.faults == 1)
    try rig.post(1)
    try rig.refused()
    #expect(rig.kept.refusals == 64)
    let space = rig.end()
    #expect(space.state.withLock { $0.misses.refusals } == 0)
  }
}
