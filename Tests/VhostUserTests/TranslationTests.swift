import Testing
import Virtio
import VirtioServing

@testable import VhostUser
@testable import VhostUserBackend

@Suite("IOTLB messages of a vhost-user session", .timeLimit(.minutes(10))) struct TranslationTests {
  private func translated(nodes: Int = 1 << 15) throws -> RawFrontend {
    try RawFrontend.sharing([.version1, .accessPlatform], nodes: nodes)
  }

  /// With its ring started, whose pages are yet to be asked for.
  private func started() throws -> RawFrontend {
    let frontend = try translated()
    try frontend.startRing(base: RawFrontend.iova)
    return frontend
  }

  /// The page of the data is forgotten, and a second read asks for it.
  private func ask(again frontend: RawFrontend, _ data: UInt64) throws {
    try frontend.must(.iotlb(.invalidate(data, 4096)))
    frontend.submitRead(sector: 2, base: RawFrontend.iova)
    try expectMiss(frontend, data)
  }

  private func run(_ frontend: RawFrontend, sector: UInt64) throws -> [IOTLBMessage] {
    frontend.submitRead(sector: sector, base: RawFrontend.iova)
    let target = frontend.availableIndex
    let asked = try frontend.serveMisses { frontend.usedIndex == target }
    #expect(frontend.peek(1, RawFrontend.Place.status) == [0])
    #expect(
      frontend.peek(512, RawFrontend.Place.data)
        == Array(frontend.disk.contents[Int(sector) * 512..<Int(sector + 1) * 512]))
    return asked
  }

  /// A ring that was asked for and one read that was done, and where its data is.
  private func warm() throws -> (RawFrontend, data: UInt64) {
    let frontend = try started()
    _ = try run(frontend, sector: 1)
    return (frontend, RawFrontend.iova + UInt64(RawFrontend.Place.data))
  }

  /// A write to an address is asked for.
  private func expectMiss(_ frontend: RawFrontend, _ address: UInt64) throws {
    let miss = IOTLBMessage(kind: .miss, address: address, permission: .write)
    #expect(try #require(try frontend.heard()).0 == .iotlb(miss))
  }

  /// The second read is over: an error, and its data as it was.
  private func expectRefused(_ frontend: RawFrontend, data: Int? = RawFrontend.Place.data) throws {
    #expect(try frontend.waitUsed(2))
    #expect(frontend.peek(1, RawFrontend.Place.status) == [1])
    if let data { #expect(frontend.peek(512, data) == [UInt8](repeating: 0xee, count: 512)) }
  }

  @Test("Missing pages are asked for once each, with exact address and access; then nothing is (R102, R103, R115)")
  func misses() throws {
    let frontend = try started()
    let asked = try run(frontend, sector: 3)
    typealias Place = RawFrontend.Place
    // The used index is read once, to know where a predecessor stopped, and a translation for writing does not say that
    // it may be.
    let pages: [Int: IOTLBMessage.Permission] = [
      Place.descriptors: .read, Place.available: .read, Place.used: [.read, .write], Place.header: .read,
      Place.data: .write, Place.status: .write,
    ]
    #expect(asked.count == 7 && Set(asked.map { [$0.address, UInt64($0.permission.rawValue)] }).count == 7)
    for message in asked { #expect(pages[Int(message.address - RawFrontend.iova)]!.isSuperset(of: message.permission)) }
    #expect(asked.allSatisfy { [.read, .write].contains($0.permission) })
    #expect(try run(frontend, sector: 4).isEmpty)
    let facts = frontend.server.statistics
    #expect(facts.addressPath == .platform && facts.iotlb.questions == 7 && facts.iotlb.reachableBytes == 6 * 4096)
  }

  @Test("Mappings given without being asked for are used (R106), up to the end of a page and no further (R042)")
  func unsolicited() throws {
    let frontend = try translated()
    try frontend.must(.iotlb(frontend.update(RawFrontend.iova, size: 0x10000)))
    try frontend.startRing(base: RawFrontend.iova)
    #expect(try run(frontend, sector: 7).isEmpty)
    #expect(frontend.server.statistics.iotlb.reachableBytes == 0x10000)
  }

  @Test("Updates that make no sense change nothing (R107, R108)")
  func badUpdates() throws {
    let frontend = try translated()
    var bad = frontend.update(RawFrontend.iova)
    bad.size = 0
    var wraps = frontend.update(RawFrontend.iova)
    wraps.address = .max - 4094
    let outside = frontend.update(RawFrontend.iova, to: RawFrontend.memorySize)
    let across = frontend.update(RawFrontend.iova, to: RawFrontend.memorySize - 4096, size: 8192)
    let odd = frontend.update(RawFrontend.iova, IOTLBMessage.Permission(rawValue: 4))
    let miss = IOTLBMessage(kind: .miss, address: 0, permission: .read)
    for message in [bad, wraps, outside, across, odd, miss] {
      #expect(try frontend.ask(.iotlb(message), ack: true) == .value(1))
    }
    #expect(frontend.server.statistics.iotlb.reachableBytes == 0)
  }

  @Test("A refused page makes a fault, said to the front-end; once mapped it works (R083, R088, R105, R125)")
  func refused() throws {
    let (frontend, data) = try warm()
    try ask(again: frontend, data)
    try frontend.answer(with: 1)
    let fault = try #require(try frontend.heard())
    #expect(fault.0 == .iotlb(IOTLBMessage(kind: .accessFail, address: data, permission: .write)) && !fault.needsReply)
    try expectRefused(frontend)
    #expect(frontend.server.statistics.iotlb.faults == 1)
    #expect(try run(frontend, sector: 2).count == 1)
  }

  @Test("An answer without an update is a refusal too, and a read-only mapping does not take a write (R084, R118)")
  func readOnly() throws {
    let (frontend, data) = try warm()
    try frontend.must(.iotlb(frontend.update(data, .read)))
    frontend.submitRead(sector: 2, base: RawFrontend.iova)
    try expectMiss(frontend, data)
    try frontend.answer(with: 0)
    try expectRefused(frontend)
  }

  @Test(
    "A page granted to a reader is not written: that is asked for, and refused (R084, R104)", arguments: [UInt64(0), 1])
  func readThenWritten(refusal: UInt64) throws {
    let frontend = try started()
    _ = try run(frontend, sector: 1)
    // The page of the header was read, and the front-end's answer allowed both.
    let page = RawFrontend.iova + UInt64(RawFrontend.Place.header)
    frontend.submitRead(sector: 2, base: RawFrontend.iova, data: RawFrontend.Place.header + 1024)
    try expectMiss(frontend, page + 1024)
    try frontend.answer(with: refusal)
    try expectRefused(frontend, data: RawFrontend.Place.header + 1024)
    #expect(frontend.server.statistics.iotlb.faults == 1)
  }

  @Test("A failure that is answered after an update leaves the update as it is")
  func failureAfterUpdate() throws {
    let (frontend, data) = try warm()
    try ask(again: frontend, data)
    try frontend.must(.iotlb(frontend.update(data)))
    try frontend.answer(with: 1)
    #expect(try frontend.waitUsed(2))
    #expect(frontend.peek(1, RawFrontend.Place.status) == [0])
    #expect(try run(frontend, sector: 3).isEmpty)
  }

  @Test("An invalidation is over when it is acknowledged; a remapped page is used from then on (R044, R109, R110)")
  func remap() throws {
    let (frontend, data) = try warm()
    // Replaced by an update, then taken back and given anew: each time the data goes elsewhere.
    try frontend.must(.iotlb(frontend.update(data, to: 0x20000)))
    frontend.submitRead(sector: 5, base: RawFrontend.iova)
    #expect(try frontend.waitUsed(2))
    #expect(frontend.peek(512, 0x20000) == Array(frontend.disk.contents[5 * 512..<6 * 512]))
    try frontend.must(.iotlb(IOTLBMessage(kind: .invalidate, address: data, size: 1, permission: .init(rawValue: 178))))
    try frontend.must(.iotlb(frontend.update(data, to: 0x30000)))
    frontend.submitRead(sector: 6, base: RawFrontend.iova)
    #expect(try frontend.waitUsed(3))
    #expect(frontend.peek(512, 0x30000) == Array(frontend.disk.contents[6 * 512..<7 * 512]))
    #expect(frontend.peek(512, 0x20000) == Array(frontend.disk.contents[5 * 512..<6 * 512]))
  }

  @Test(
    "Flushes: size 0 is everything, and a range may end at 2^64 (R108)",
    arguments: [
      (UInt64(0), UInt64(0)), (0xfef0_0000, 0xffff_ffff_0110_0000), (RawFrontend.iova, .max),
    ])
  func flush(_ address: UInt64, _ size: UInt64) throws {
    let frontend = try started()
    #expect(try run(frontend, sector: 1).count == 7)
    try frontend.must(
      .iotlb(
        IOTLBMessage(
          kind: .invalidate, address: address, size: size, frontendAddress: 0x55, permission: .init(rawValue: 6))))
    #expect(frontend.server.statistics.iotlb.reachableBytes == 0)
    #expect(try run(frontend, sector: 2).count == 6)
  }

  @Test("Memory changes, ring stops and resets empty the table (R113, R114)")
  func flushes() throws {
    let frontend = try translated()
    func fill() throws {
      try frontend.must(.iotlb(frontend.update(RawFrontend.iova)))
      #expect(frontend.server.statistics.iotlb.reachableBytes == 4096)
    }
    try frontend.startRing(base: RawFrontend.iova)
    for request in [FrontendRequest.setVringEnable(VringState(0, 0)), .setStatus(0), .resetOwner] {
      try fill()
      try frontend.must(request)
      #expect(frontend.server.statistics.iotlb.reachableBytes == 0, "\(request.name)")
    }
    try fill()
    try frontend.share()
    #expect(frontend.server.statistics.iotlb.reachableBytes == 0)
    try fill()
    try frontend.must(.setFeatures(Features.version1.word | 1 << 30))
    #expect(frontend.server.statistics.iotlb.reachableBytes == 0)
    #expect(try frontend.ask(.iotlb(frontend.update(RawFrontend.iova)), ack: true) == .value(1))
  }

  @Test("A late answer leaves nothing behind for the next driver (R064)")
  func late() throws {
    let frontend = try started()
    let heard = try #require(try frontend.heard())
    guard case .iotlb(let message) = heard.0 else { return #expect(Bool(false)) }
    try frontend.stopRing()
    try frontend.must(.iotlb(frontend.update(message.address)))
    #expect(frontend.server.statistics.iotlb.reachableBytes == 0)
  }

  @Test("A table that is full makes room and goes on (R117)")
  func capacity() throws {
    let frontend = try translated(nodes: 16)
    try frontend.startRing(base: RawFrontend.iova)
    for i in 0..<64 as Range<UInt64> {
      // Far apart, so that each needs nodes of its own.
      let far = IOTLBMessage(
        kind: .update, address: i << 39 | 0x8000_0000_0000_0000, size: 4096, frontendAddress: RawFrontend.frontend,
        permission: .read)
      try frontend.must(.iotlb(far))
    }
    #expect(frontend.server.statistics.iotlb.evictions > 0)
    try frontend.must(.iotlb(IOTLBMessage(kind: .invalidate, address: 0)))
    _ = try run(frontend, sector: 9)
  }

  @Test("Parts of pages can be mapped, and nothing beside them is reached")
  func oddMappings() throws {
    let frontend = try translated()
    try frontend.must(.iotlb(frontend.update(RawFrontend.iova, size: 0x8000)))
    let data = RawFrontend.iova + UInt64(RawFrontend.Place.data)
    var piece = frontend.update(data)
    piece.size = 512
    try frontend.must(.iotlb(piece))
    try frontend.startRing(base: RawFrontend.iova)
    #expect(try run(frontend, sector: 1).isEmpty)
    piece.size = 511
    try frontend.must(.iotlb(piece))
    frontend.submitRead(sector: 2, base: RawFrontend.iova)
    try expectMiss(frontend, data + 511)
    try frontend.answer(with: 1)
    try expectRefused(frontend, data: nil)
  }
}
