import DMA
import Testing
import VirtioServing

@testable import VhostUser
@testable import VhostUserBackend

@Suite("What an update grants") struct GrantTests {
  static let iova: UInt64 = 0x40_0000_0000

  // QEMU's answers allow reading and writing, for all that the guest mapped: the question alone says what was looked
  // up.
  private let rig: IOTLBRig
  private let bell = RungBell()

  init() throws { rig = try IOTLBRig() }

  @Test(
    "What is granted is question and answer together, whichever access comes first and whatever the page allows (R083, R084, R104, R118)",
    arguments: [
      (DMAAccess.read, DMAAccess.write), (.write, .read), (.read, .read), (.write, .write),
    ], [[.read], [.write], [.read, .write]] as [IOTLBMessage.Permission])
  func questionAndAnswer(order: (first: DMAAccess, second: DMAAccess), mapped: IOTLBMessage.Permission) throws {
    for answered in [IOTLBMessage.Permission([.read, .write]), mapped] {
      let rig = try IOTLBRig()
      let bell = RungBell()
      func attempt(_ access: DMAAccess) throws -> Bool {
        if rig.granted(Self.iova).allows(access) { return true }
        rig.asked.forget()
        try #require(rig.outcome(Self.iova, access, bell) == .pending)
        try #require(rig.asked.messages.map(\.permission) == [access == .read ? .read : .write])
        let allowed = mapped.contains(access == .read ? .read : .write)
        if allowed { try rig.space.apply(rig.update(Self.iova, page: 5, answered)) }
        // Its value is no matter: an update before it stands, and without one it refuses.
        let rings = bell.rings
        rig.space.answered(try #require(rig.asked.questions.first))
        #expect(bell.rings == (allowed ? rings : rings + 1) && bell.isRung)
        let outcome = rig.outcome(Self.iova, access, bell)
        _ = rig.space.walkEnded(bell, repeats: false)
        #expect((outcome == nil) == allowed)
        return outcome == nil
      }
      for access in [order.first, order.second, order.first] {
        #expect(try attempt(access) == mapped.contains(access == .read ? .read : .write))
      }
    }
  }

  @Test(
    "A page that is read and written is asked about for both at once, each answer grants its own, and neither waits for queues"
  )
  func mapsBothWays() throws {
    #expect(rig.outcome(Self.iova, .read, bell) == .pending && rig.outcome(Self.iova + 600, .write, bell) == .pending)
    #expect(rig.asked.messages.map(\.permission) == [.read, .write])
    let generation = rig.space.fence.generation
    try rig.space.apply(rig.update(Self.iova, page: 8))
    #expect(rig.page(Self.iova) == 8 && rig.page(Self.iova, .write) == nil && bell.rings == 0)
    try rig.space.apply(rig.update(Self.iova, page: 8))
    #expect(rig.page(Self.iova) == 8 && rig.page(Self.iova, .write) == 8 && bell.rings == 1)
    #expect(rig.space.fence.generation == generation, "permission only grew")
    // To another page instead: that is waited for.
    rig.asked.forget()
    try rig.invalidate(Self.iova, 4096)
    #expect(rig.outcome(Self.iova, .read, bell) == .pending)
    try rig.space.apply(rig.update(Self.iova, page: 8))
    #expect(rig.outcome(Self.iova, .write, bell) == .pending)
    let before = rig.space.fence.generation
    try rig.space.apply(rig.update(Self.iova, page: 9))
    #expect(rig.space.fence.generation != before && rig.page(Self.iova) == nil && rig.page(Self.iova, .write) == 9)
  }

  @Test(
    "An update of many pages that answers a reader grants reading on all of them; what nobody asked for is taken at its word (R106)"
  )
  func wideAnswer() throws {
    #expect(rig.outcome(Self.iova + 2 * 4096, .read) == .pending)
    try rig.space.apply(rig.update(Self.iova, page: 16, pages: 8))
    for n in UInt64(0)..<8 {
      #expect(rig.page(Self.iova + n * 4096) == UInt16(16 + n) && rig.page(Self.iova + n * 4096, .write) == nil)
    }
    // Written in the middle: the whole mapping comes again, and loses nothing.
    #expect(rig.outcome(Self.iova + 5 * 4096, .write) == .pending)
    try rig.space.apply(rig.update(Self.iova, page: 16, pages: 8))
    for n in UInt64(0)..<8 {
      #expect(rig.page(Self.iova + n * 4096) != nil && rig.page(Self.iova + n * 4096, .write) != nil)
    }
    try rig.space.apply(rig.update(Self.iova + 0x100000, page: 30, pages: 2))
    #expect(rig.page(Self.iova + 0x101000) != nil && rig.page(Self.iova + 0x101000, .write) == 31)
  }

  @Test("Parts of pages are granted as asked, too, and reading and writing one do not displace each other")
  func oddBothWays() throws {
    var piece = rig.update(Self.iova, page: 3)
    piece.size = 512
    #expect(rig.outcome(Self.iova, .read, bell) == .pending)
    try rig.space.apply(piece)
    #expect(rig.outcome(Self.iova, .read, bell) == nil && rig.outcome(Self.iova + 8, .write, bell) == .pending)
    try rig.space.apply(piece)
    #expect(rig.outcome(Self.iova, .read, bell) == nil && rig.outcome(Self.iova + 8, .write, bell) == nil)
    #expect(rig.space.statistics.mappings == 1)
  }

  @Test(
    "An answer from before a flush grants nothing, and what was asked since is granted by its own (R064)",
    arguments: [DMAAccess.read, .write])
  func lateAnswers(_ access: DMAAccess) throws {
    let (old, new) = (RungBell(), RungBell())
    #expect(rig.outcome(Self.iova, .read, old) == .pending)
    rig.space.flush()
    #expect(rig.outcome(Self.iova, access, new) == .pending)
    try rig.space.apply(rig.update(Self.iova, page: 6))
    #expect(!rig.granted(Self.iova).contains(.write), "it was not looked up for writing")
    try rig.space.apply(rig.update(Self.iova, page: 6))
    #expect(rig.page(Self.iova, access) == 6 && rig.page(Self.iova, access == .read ? .write : .read) == nil)
    for question in rig.asked.questions { rig.space.answered(question) }
    #expect(new.rings == 1)
  }
}
