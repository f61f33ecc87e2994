import DMA
import Testing
import VhostUser
import Virtio
import VirtioTestKit

@testable import VhostUserBackend

/// A ring in memory, as §2.7 or §2.8 draws it, with chains whose pages were not asked for, and what is asked of the
/// front-end.
private final class AheadRig {
  static let size: UInt16 = 64
  static let ringAt: UInt64 = 0x10_0000
  static let dataAt: UInt64 = 0x80_0000_0000

  let rig: IOTLBRig
  let isPacked: Bool
  let bell = RungBell()
  private var queue: Virtqueue
  private var descriptors = 0
  private var chains = 0
  /// Chains that came out in the last round.
  private(set) var taken = 0

  init(packed: Bool) throws {
    let rig = try IOTLBRig()
    self.rig = rig
    isPacked = packed
    // The ring's pages are mapped before the queue looks.
    for page in UInt64(0)..<8 { try rig.space.apply(rig.update(Self.ringAt + page << 12, page: page)) }
    queue = try Virtqueue(
      index: 0,
      layout: QueueLayout(
        size: Self.size, descriptorArea: DMAAddress(Self.ringAt), driverArea: DMAAddress(Self.ringAt + 0x1000),
        deviceArea: DMAAddress(Self.ringAt + 0x2000)),
      features: packed ? [.version1, .indirectDescriptors, .ringPacked] : [.version1, .indirectDescriptors],
      in: rig.space, waking: bell)
  }

  static func page(_ n: Int) -> UInt64 { dataAt + UInt64(n) << 12 }

  private func put(_ bytes: [UInt8], _ at: Int) { rig.memory.write(bytes, at: GuestAddress(UInt64(at))) }

  /// Makes a chain of device-writable descriptors available. `flags` go into each.
  func post(_ buffers: [(address: UInt64, count: Int)], flags: UInt16 = 2, next: UInt16? = nil) {
    let head = descriptors
    for (i, buffer) in buffers.enumerated() {
      let isLast = i + 1 == buffers.count
      var word = flags | (isLast ? 0 : 1)
      var bytes = buffer.address.bytes + UInt32(buffer.count).bytes
      if isPacked {
        word |= 1 << 7
        bytes += UInt16(chains).bytes + word.bytes
      } else {
        bytes += word.bytes + (next ?? UInt16(descriptors + 1)).bytes
      }
      put(bytes, descriptors * 16)
      descriptors += 1
    }
    if !isPacked {
      put(UInt16(head).bytes, 0x1004 + chains * 2)
      put(UInt16(chains + 1).bytes, 0x1002)
    }
    chains += 1
  }

  /// One round, in which so many chains have to come out, and so many of them without their memory.
  func expectRound(_ chains: Int, faults: Int, sourceLocation: SourceLocation = #_sourceLocation) throws {
    var faulty = 0
    taken = 0
    try queue.beginRound()
    while let chain = try queue.next() {
      taken += 1
      if chain.fault != nil { faulty += 1 }
      queue.complete(chain, written: 0)
    }
    queue.endRound()
    #expect(taken == chains && faulty == faults, sourceLocation: sourceLocation)
  }

  var rings: Int { bell.rings }

  /// Pages of data that were asked for since the last time, in order.
  func asked() -> [Int] {
    defer { rig.asked.forget() }
    return rig.asked.messages.filter { $0.kind == .miss && $0.address >= Self.dataAt }.map {
      Int(($0.address - Self.dataAt) >> 12)
    }
  }

  /// The front-end maps a page of data.
  func map(_ n: Int) throws { try rig.space.apply(rig.update(Self.page(n), page: UInt64(16 + n % 200))) }
}

@Suite("Chains behind one that waits") struct PrefetchTests {
  @Test(
    "Their pages are asked for with its own, and when all are answered all are taken in one round",
    arguments: [false, true])
  func together(packed: Bool) throws {
    let rig = try AheadRig(packed: packed)
    for n in 0..<8 { rig.post([(AheadRig.page(3 * n), 512), (AheadRig.page(3 * n + 1), 8192)]) }
    try rig.expectRound(0, faults: 0)
    #expect(rig.asked() == Array(0..<24))
    for n in 0..<24 { try rig.map(n) }
    #expect(rig.rings == 1, "only the chain at the head is waited for")
    try rig.expectRound(8, faults: 0)
    let asked2 = rig.asked()
    #expect(asked2.isEmpty)
  }

  @Test("The one at the head goes on as soon as its own pages are there", arguments: [false, true])
  func headFirst(packed: Bool) throws {
    let rig = try AheadRig(packed: packed)
    for n in 0..<4 { rig.post([(AheadRig.page(n), 512)]) }
    try rig.expectRound(0, faults: 0)
    try rig.map(0)
    #expect(rig.rings == 1)
    try rig.expectRound(1, faults: 0)
    #expect(rig.asked() == [0, 1, 2, 3], "nothing is asked twice")
    // What was asked ahead is now waited for.
    try rig.map(1)
    #expect(rig.rings == 2)
    for n in 2..<4 { try rig.map(n) }
    try rig.expectRound(3, faults: 0)
  }

  @Test("A page that is refused before its chain's turn is a fault of that chain alone", arguments: [false, true])
  func refused(packed: Bool) throws {
    let rig = try AheadRig(packed: packed)
    for n in 0..<3 { rig.post([(AheadRig.page(n), 512)]) }
    try rig.expectRound(0, faults: 0)
    var questions = rig.rig.asked.questions
    rig.rig.asked.forget()
    // The last one's first: no chain waits for it yet.
    rig.rig.space.answered(questions[2])
    for n in 0..<2 { try rig.map(n) }
    try rig.expectRound(2, faults: 0)
    questions = rig.rig.asked.questions
    #expect(rig.asked() == [2], "it asks for itself")
    rig.rig.space.answered(questions[0])
    try rig.expectRound(1, faults: 1)
  }

  @Test("A table that is known is looked into; one that is not is asked for", arguments: [false, true])
  func tables(packed: Bool) throws {
    let rig = try AheadRig(packed: packed)
    // A table in the ring's own memory.
    let flags: UInt16 = 2
    for i in 0..<2 {
      let entry = AheadRig.page(10 + i).bytes + UInt32(512).bytes
      let tail = packed ? UInt16(0).bytes + flags.bytes : (i == 0 ? UInt16(3) : 2).bytes + UInt16(1).bytes
      rig.rig.memory.write(entry + tail, at: GuestAddress(0x4000 + UInt64(i) * 16))
    }
    rig.post([(AheadRig.page(0), 512)])
    rig.post([(AheadRig.ringAt + 0x4000, 32)], flags: 4)
    rig.post([(AheadRig.page(5), 32)], flags: 4)
    try rig.expectRound(0, faults: 0)
    #expect(rig.asked() == [0, 10, 11, 5])
  }

  @Test("What is wrong with a later chain is found when its turn comes, and not before")
  func wrong() throws {
    let rig = try AheadRig(packed: false)
    rig.post([(AheadRig.page(0), 512)])
    rig.post([(AheadRig.page(1), 512), (AheadRig.page(2), 512)], next: 1000)
    try rig.expectRound(0, faults: 0)
    #expect(rig.asked() == [0, 1])
    try rig.map(0)
    #expect(throws: QueueError.descriptorIndex(1000)) { try rig.expectRound(1, faults: 0) }
    #expect(rig.taken == 1)
  }

  @Test("However much the driver makes available, what one look asks is bounded", arguments: [false, true])
  func bounded(packed: Bool) throws {
    let rig = try AheadRig(packed: packed)
    rig.post([(AheadRig.page(0), 512)])
    // 4 GiB each, and a chain that goes in a circle.
    for n in 0..<8 { rig.post([(AheadRig.page(1000 + n << 20), 0xffff_f000)]) }
    if !packed { rig.post([(AheadRig.page(1), 512), (AheadRig.page(1), 512)], next: 9) }
    try rig.expectRound(0, faults: 0)
    #expect(rig.asked().count <= 1025)
  }
}
