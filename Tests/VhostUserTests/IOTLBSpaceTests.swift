import DMA
import HostIO
import SocketMessages
import Testing
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

@Suite("What IOTLB messages do to what a device can reach") struct IOTLBSpaceTests {
  static let iova: UInt64 = 0x40_0000_0000
  private let rig: IOTLBRig
  private let bell = RungBell()

  init() throws { rig = try IOTLBRig() }

  @Test(
    "A space starts empty and asks for the very byte and access; guest addresses of the memory table mean nothing in it (R101, R102, R103)"
  )
  func empty() throws {
    #expect(rig.space.statistics.reachableBytes == 0)
    #expect(rig.outcome(0x1234, .write) == .pending)
    #expect(
      rig.asked.messages.map(\.kind) == [.miss] && rig.asked.messages[0].address == 0x1234
        && rig.asked.messages[0].permission == .write)
  }

  @Test("An update is taken, asked for or not, by front-end address, and wakes who waited (R101, R104, R106)")
  func updates() throws {
    #expect(rig.outcome(Self.iova + 5, .read, bell) == .pending)
    try rig.space.apply(rig.update(Self.iova, page: 7))
    #expect(bell.rings == 1 && rig.page(Self.iova) == 7)
    try rig.space.apply(rig.update(Self.iova + 0x10000, page: 9, pages: 3))
    #expect(rig.page(Self.iova + 0x12000) == 11 && rig.space.statistics.reachableBytes == 4 * 4096)
  }

  @Test("A refused miss is a fault of the access that waited, and is asked for anew after it (R105)")
  func refusal() throws {
    #expect(rig.outcome(Self.iova, .write, bell) == .pending)
    rig.space.answered(try #require(rig.asked.questions.first))
    #expect(bell.rings == 1)
    #expect(rig.outcome(Self.iova, .write, bell) == rig.fault(Self.iova, .write, .unmapped))
    // The queue ends the access for it.
    rig.space.report(DMAFault(address: DMAAddress(Self.iova), access: .write, reason: .unmapped))
    _ = rig.space.walkEnded(bell, repeats: false)
    #expect(rig.outcome(Self.iova, .write, bell) == .pending && rig.asked.questions.count == 2)
  }

  @Test(
    "A miss is sent once for a page and access, whoever waits; one that cannot be sent is a fault now and asked for later (R115)"
  )
  func once() throws {
    let first = RungBell(), second = RungBell()
    for offset in [UInt64(0), 8, 4095] {
      #expect(rig.outcome(Self.iova + offset, .read, first) == .pending)
      #expect(rig.outcome(Self.iova + offset, .read, second) == .pending)
    }
    #expect(rig.asked.messages.count == 1)
    try rig.space.apply(rig.update(Self.iova, page: 1))
    #expect(first.rings == 1 && second.rings == 1)
    rig.asked.setThere(false)
    #expect(rig.outcome(Self.iova + 4096, .read, first) == rig.fault(Self.iova + 4096, .read, .unmapped))
    rig.asked.setThere(true)
    #expect(rig.outcome(Self.iova + 4096, .read, first) == .pending && rig.asked.messages.count == 2)
  }

  @Test(
    "Updates outside the memory table, of no bytes, past the end of the space, or with permissions nobody defined are refused and change nothing (R107, R108)"
  )
  func badUpdates() throws {
    try rig.space.apply(rig.update(Self.iova, page: 3))
    let start = IOTLBRig.frontend, end = start + IOTLBRig.regionBytes
    for message in [
      .update(Self.iova, 0, to: start), .update(Self.iova, 4096, to: end), .update(Self.iova, 8192, to: end - 4096),
      .update(Self.iova, 4096, to: 0x5000), .update(Self.iova, 4096, to: .max), .update(.max, 4096, to: start),
      .update(0, .max, to: start), .update(Self.iova, 4096, to: start, .init(rawValue: 4)),
      IOTLBMessage(kind: .miss, address: Self.iova), IOTLBMessage(kind: .accessFail, address: Self.iova),
    ] as [IOTLBMessage] {
      #expect(throws: ProtocolError.self) { try rig.space.apply(message) }
      #expect(rig.page(Self.iova) == 3 && rig.space.statistics.reachableBytes == 4096)
    }
  }

  @Test(
    "An invalidation of no bytes, of all bytes, or up to the very top means what it says (R108)",
    arguments: [
      (UInt64(0), UInt64(0)), (0, .max), (0xfef0_0000, 0xffff_ffff_0110_0000), (iova, .max),
    ])
  func wideInvalidations(range: (address: UInt64, size: UInt64)) throws {
    let top = UInt64.max - 4095
    try rig.space.apply(rig.update(Self.iova, page: 1))
    try rig.space.apply(rig.update(top, page: 2))
    #expect(rig.page(top) == 2)
    try rig.invalidate(range.address, range.size)
    #expect(rig.page(Self.iova) == nil)
    // 2^64 - 1 bytes from 0 leave out the last byte; its page goes with the others, for dropping more is allowed.
    #expect(rig.page(top) == nil && rig.space.statistics.reachableBytes == 0)
  }

  @Test("An update over a mapping replaces it, larger, smaller or partly (R109)")
  func replace() throws {
    try rig.space.apply(rig.update(Self.iova, page: 10, pages: 4))
    try rig.space.apply(rig.update(Self.iova + 4096, page: 20))
    #expect(rig.page(Self.iova + 4096) == 20)
    // The rest is as it was or has to be asked for; never the wrong page.
    for (offset, old) in [(UInt64(0), UInt16(10)), (8192, 12), (12288, 13)] {
      let page = rig.page(Self.iova + offset)
      #expect(page == old || page == nil)
    }
    try rig.space.apply(rig.update(Self.iova, page: 30, pages: 4))
    #expect((0..<4).map { rig.page(Self.iova + $0 * 4096) } == [30, 31, 32, 33])
    try rig.space.apply(rig.update(Self.iova, page: 30, pages: 4, .read))
    #expect(rig.page(Self.iova, .write) == nil && rig.page(Self.iova) == 30)
  }

  @Test(
    "An invalidation of a part of a mapping drops at least that part (R111)", arguments: [1, 4096, 4097] as [UInt64])
  func part(size: UInt64) throws {
    try rig.space.apply(rig.update(Self.iova, page: 16, pages: 64))
    try rig.invalidate(Self.iova + 5 * 4096, size)
    #expect(rig.page(Self.iova + 5 * 4096) == nil)
    if size > 4096 { #expect(rig.page(Self.iova + 6 * 4096) == nil) }
    for n in UInt64(0)..<64 {
      let page = rig.page(Self.iova + n * 4096)
      #expect(page == nil || page == UInt16(16 + n))
    }
  }

  @Test("A flush forgets everything; the answer to a question from before it leaves nothing behind (R064, R113, R114)")
  func flush() throws {
    try rig.space.apply(rig.update(Self.iova, page: 1))
    #expect(rig.outcome(Self.iova + 4096, .read, bell) == .pending)
    rig.space.flush()
    #expect(rig.page(Self.iova) == nil)
    // The front-end had sent this before it noticed the end.
    try rig.space.apply(rig.update(Self.iova + 4096, page: 2))
    #expect(rig.space.statistics.reachableBytes == 0)
    rig.space.answered(try #require(rig.asked.questions.first))
    #expect(rig.outcome(Self.iova + 4096, .read, bell) == .pending, "asked anew, not refused for an old answer")
  }

  @Test(
    "Where chains give their pages back, an invalidation waits for those that still use a page another one gave back (R110)",
    .timeLimit(.minutes(10)))
  func givenBack() throws {
    let space = IOTLBSpace(rig.table, servesOneChain: true, ask: { _, _ in true })
    // Two chains name the page; the first is done.
    var cache = IOTLB(space)
    _ = cache.beginRound()
    var lease: MappingHold? = cache.hold(from: Self.iova, through: Self.iova)
    cache.endRound()
    space.forget(from: Self.iova, through: Self.iova + 4095)
    let generation = space.fence.generation
    let invalidation = WorkThread { try? space.apply(.invalidate(Self.iova, 4096)) }
    while space.fence.generation == generation, !invalidation.isDone { invalidation.pause() }
    #expect(!invalidation.isDone)
    lease = nil
    _ = cache.beginRound()
    cache.endRound()
    #expect(invalidation.join())
    _ = consume lease
  }

  @Test("A table with room for little takes a working set that is larger: the newest mapping always works (R117)")
  func bounded() throws {
    let rig = try IOTLBRig(maxNodes: 8)
    for n in UInt64(0)..<200 {
      // Far apart, so that each needs nodes of its own.
      let address = Self.iova + n << 32
      try rig.space.apply(rig.update(address, page: n))
      #expect(rig.page(address) == UInt16(n))
      #expect(rig.space.statistics.mappings <= 8)
    }
    #expect(rig.space.statistics.evictions > 0)
  }

  @Test("A mapping for reading does not serve a write: that is asked for (R118)")
  func permission() throws {
    try rig.space.apply(rig.update(Self.iova, page: 4, .read))
    #expect(rig.page(Self.iova) == 4)
    #expect(rig.outcome(Self.iova, .write, nil) == .pending)
    #expect(rig.asked.messages.map(\.permission) == [.write])
    rig.space.answered(try #require(rig.asked.questions.first))
    #expect(rig.outcome(Self.iova, .write, nil) == rig.fault(Self.iova, .write, .permission))
  }

  @Test("A fault is told to the front-end as ACCESS_FAIL, with address and access (R125)")
  func accessFail() throws {
    rig.space.report(DMAFault(address: DMAAddress(Self.iova + 77), access: .write, reason: .unmapped))
    #expect(rig.asked.messages == [IOTLBMessage(kind: .accessFail, address: Self.iova + 77, permission: .write)])
    #expect(rig.space.statistics.faults == 1)
  }

  @Test(
    "Misses go out without waiting: a front-end that reads nothing does not hold up its own updates (R116)",
    .timeLimit(.minutes(10)))
  func deafFrontend() throws {
    let (ours, theirs) = try UnixSocket.pair()
    let channel = try BackendChannel()
    _ = channel.replace(ours)
    let space = IOTLBSpace(
      rig.table, ask: { message, question in question.map { channel.gather(message, $0) } ?? false },
      asked: { channel.post() })
    // Far more than a socket takes.
    for n in UInt64(0)..<20_000 {
      do throws(DMAInterruption) {
        _ = try space.translate(DMAAddress(Self.iova + n << 12), for: .read, waking: nil)
      } catch {
        #expect(error == .pending)
      }
    }
    try space.apply(rig.update(Self.iova, page: 6))
    #expect(space.statistics.reachableBytes == 4096 && space.statistics.questions == 20_000)
    withExtendedLifetime(theirs) {}
  }
}
