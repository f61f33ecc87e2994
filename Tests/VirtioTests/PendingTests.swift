import DMA
import Synchronization
import Testing
import VirtioTestKit

@testable import Virtio

/// Translations that have to be asked for.
@Suite("Pending translations") struct PendingTests {
  final class Bell: TranslationWaiter {
    let rings = Atomic<Int>(0)
    func wake() { rings.wrappingAdd(1, ordering: .relaxed) }
  }

  @Test(
    "Wherever a page is missing, nothing is consumed until it arrives, and every chain is done exactly once",
    arguments: [false, true], [false, true])
  func everyPosition(_ packed: Bool, _ answersBackwards: Bool) throws {
    for table in [false, true] {
      let rig = try RingRig(RingCase(packed: packed, size: 16, path: .platform), table: table)
      let paged = try #require(rig.paged)
      let bell = Bell()
      var expected: [[UInt8]] = []
      for n in 0..<4 {
        // Readable over two pages, writable over two; every other one through a table.
        let at = rig.data + 65536 * n
        let read = (0..<100).map { UInt8($0 + n) }
        rig.literal.write(read, at: at + 4050)
        expected.append(read)
        _ = rig.ring.post(
          [LiteralDescriptor(at + 4050, 100), LiteralDescriptor(at + 16384 + 4000, 300, writable: true)],
          table: n % 2 == 1 ? rig.tables + 256 * n : nil)
      }
      rig.ring.publish()
      paged.holdBackEverything()
      paged.forgetAsked()
      var queue = try rig.makeQueue(waking: bell)
      var popped: [Popped] = []
      var answers = 0
      var before = queue.state
      while popped.count < 4 {
        let served = try queue.serve()
        #expect(!served.more, "a pending queue must not spin")
        popped += served.chains
        if served.chains.isEmpty { #expect(queue.state == before, "nothing is consumed while it waits") }
        before = queue.state
        let pending = queue.isPending
        #expect(pending == (popped.count < 4))
        guard pending else { break }
        let questions = paged.questions
        try #require(!questions.isEmpty && answers < 100)
        let rings = bell.rings.load(ordering: .relaxed)
        paged.answer((answersBackwards ? questions.last : questions.first)!.address)
        answers += 1
        #expect(bell.rings.load(ordering: .relaxed) == rings + 1, "the answer wakes the queue")
      }
      #expect(popped.map(\.read) == expected)
      #expect(popped.allSatisfy { $0.room == 300 && $0.fault == nil })
      #expect(rig.ring.takeUsed().count == 4)
      #expect(paged.faults.isEmpty)
      let counts = queue.statistics.counts
      #expect(counts.requests == 4 && counts.completions == 4)
      #expect(counts.writtenBytes == 1200 && counts.readableBytes == 400)
    }
  }

  @Test("All missing pages of a chain, and of the ring, are asked for at once", arguments: [false, true])
  func together(_ packed: Bool) throws {
    let (rig, paged) = try RingRig.platform(packed)
    rig.ring.post([
      LiteralDescriptor(rig.data, 4096 * 5), LiteralDescriptor(rig.data + 40960, 4096 * 4, writable: true),
      LiteralDescriptor(rig.data + 131072, 1, writable: true),
    ])
    rig.ring.publish()
    paged.holdBackEverything()
    var queue = try rig.makeQueue()
    _ = try queue.serve()
    #expect(
      Set(paged.questions.map { $0.address.rawValue >> 12 })
        == Set([
          rig.layout.descriptorArea.rawValue >> 12, rig.layout.driverArea.rawValue >> 12,
          rig.layout.deviceArea.rawValue >> 12,
        ]))
    for area in [rig.layout.descriptorArea, rig.layout.driverArea, rig.layout.deviceArea] { paged.answer(area) }
    _ = try queue.serve()
    let asked = Set(paged.questions.map { $0.address.rawValue })
    let wanted =
      (0..<5).map { (rig.data + 4096 * $0).rawValue } + (0..<4).map { (rig.data + 40960 + 4096 * $0).rawValue }
      + [(rig.data + 131072).rawValue]
    #expect(asked == Set(wanted))
    for page in wanted { paged.answer(DMAAddress(page)) }
    let served = try queue.serve()
    #expect(served.chains.count == 1 && served.chains[0].room == 4096 * 4 + 1)
  }

  @Test("A page asked for ahead that turns out to be unmapped is reported only when the chain is resolved (R095)")
  func speculative() throws {
    let (rig, paged) = try RingRig.platform(false)
    var queue = try rig.makeQueue()
    _ = try queue.serve()
    paged.unmap(rig.data + 8192, byteCount: 4096)
    paged.holdBack(rig.data)
    rig.offer(rig.data, 4096 * 3)
    // The last page is refused while the first is still asked for: that decides the chain, once.
    let served = try queue.serve()
    let fault = DMAFault(address: rig.data + 8192, access: .read, reason: .unmapped)
    #expect(served.chains.map(\.fault) == [fault])
    paged.answer(rig.data)
    #expect(try queue.serve().chains.isEmpty)
    #expect(paged.faults == [fault])
  }

  @Test("Chains in front of a pending one are given back and called for", arguments: [false, true])
  func inFront(_ packed: Bool) throws {
    let (rig, paged) = try RingRig.platform(packed, eventIndex: false)
    paged.holdBack(rig.data + 4096)
    let first = rig.ring.post([LiteralDescriptor(rig.data, 4, writable: true)])
    rig.offer(rig.data + 4096, 4, writable: true)
    var queue = try rig.makeQueue()
    let served = try queue.serve()
    #expect(served.chains.map(\.id) == [first])
    #expect(served.call && !served.more)
    #expect(rig.ring.takeUsed().map(\.id) == [UInt32(first)])
    #expect(queue.statistics.counts.waits == 1)
  }

  @Test("A queue that is dropped while it waits leaves nothing behind: the answer finds nobody (R064)")
  func lateAnswer() throws {
    let (rig, paged) = try RingRig.platform(false)
    let id = rig.offer(rig.data, 4, writable: true)
    paged.holdBack(rig.data)
    do {
      var queue = try rig.makeQueue()
      let served = try queue.serve()
      #expect(served.chains.isEmpty)
    }
    paged.answer(rig.data)
    paged.fence.drain()
    #expect(rig.ring.takeUsed().isEmpty)
    // A new queue on the same ring does it.
    var queue = try rig.makeQueue()
    let served = try queue.serve()
    #expect(served.chains.map(\.id) == [id])
  }
}
