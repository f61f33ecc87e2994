import DMA
import Foundation
import HostIO
import Storage
import Testing
import Virtio
import VirtioBlock
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

/// A back-end that takes over from one that died with four reads under way, behind an IOMMU.
private final class Replaying {
  static let count: UInt16 = 4
  let frontend: RawFrontend
  let record: RawFrontend.Record

  /// The reads' data are on pages of their own, which are not mapped, as nothing but the ring's areas is.
  init(patience: Duration? = nil, protocol features: ProtocolFeatures = RawFrontend.all) throws {
    frontend = try RawFrontend(patience: patience)
    try frontend.negotiate([.version1, .accessPlatform], protocol: features)
    try frontend.share()
    record = try RawFrontend.Record(of: frontend)
    // Version 1, so many descriptors, nothing completed; then one entry a descriptor: in flight, and its turn.
    write(UInt16(1).bytes + record.area.queueSize.bytes + UInt16(0).bytes + UInt16(0).bytes, 8)
    for i in 0..<Int(Self.count) {
      write([1], 16 + 16 * 3 * i)
      write(UInt64(i).bytes, 16 + 16 * 3 * i + 8)
    }
    for i in 0..<Int(Self.count) {
      let (header, data) = (0x4000 + 0x100 * i, 0x8000 + 0x1000 * i)
      frontend.poke(UInt64(0).bytes + UInt64(i).bytes + [0xff], header)
      let parts = [(header, 16, 1, 3 * i + 1), (data, 512, 3, 3 * i + 2), (header + 16, 1, 2, 0)]
      for (j, part) in parts.enumerated() {
        frontend.poke(
          RawFrontend.descriptor(RawFrontend.iova, part.0, UInt32(part.1), UInt16(part.2), UInt16(part.3)),
          RawFrontend.Place.descriptors + 16 * (3 * i + j))
      }
      frontend.poke(UInt16(3 * i).bytes, RawFrontend.Place.available + 4 + 2 * i)
    }
    frontend.poke(Self.count.bytes, RawFrontend.Place.available + 2)
  }

  private func write(_ bytes: [UInt8], _ offset: Int) { _ = record.mapping.copy(bytes.span, to: offset) }

  /// Starts the ring, whose areas are mapped.
  func start() throws {
    try frontend.must(.iotlb(frontend.update(RawFrontend.iova + 0x1000, size: 0x3000)))
    try frontend.install(record)
    try frontend.startRing(base: RawFrontend.iova, at: UInt32(Self.count))
  }

  func started() throws -> Replaying {
    try start()
    return self
  }

  /// Reads that the record says are still to be done.
  var left: Int { (0..<Int(Self.count)).count { record.mapping.bytes(1, at: 16 + 16 * 3 * $0) == [1] } }

  /// Answers what is asked about the reads until all are done; how much that was.
  func serveMisses() throws -> Int {
    var count = 0
    let end = ContinuousClock.now + .seconds(10)
    while frontend.usedIndex != Self.count, ContinuousClock.now < end {
      guard case (.iotlb(let message), let needsReply)? = try frontend.heard(within: .milliseconds(20)) else {
        continue
      }
      // Misses for the ring's new address are not answered.
      guard message.kind == .miss, message.address < RawFrontend.iova + 0x80000 else { break }
      try frontend.must(.iotlb(frontend.update(message.address)))
      if needsReply { try frontend.answer(with: 0) }
      count += 1
    }
    return count
  }

  var statuses: [UInt8] { (0..<Int(Self.count)).map { frontend.peek(1, 0x4010 + 0x100 * $0)[0] } }
}

@Suite("Rings that stop", .timeLimit(.minutes(10))) struct StoppingTests {
  /// Requests after which a ring stands still, and the first word of their answer.
  enum Way: String, CaseIterable {
    case getBase, disable, reset, resetDevice, resetOwner, newAddress

    func request(_ frontend: RawFrontend) -> FrontendRequest {
      switch self {
      case .getBase: .getVringBase(VringState(0, 0))
      case .disable: .setVringEnable(VringState(0, 0))
      case .reset: .setStatus(0)
      case .resetDevice: .resetDevice
      case .resetOwner: .resetOwner
      // Areas that are not mapped: the ring must stay silent.
      case .newAddress: .setVringAddress(frontend.address(RawFrontend.iova + 0x80000))
      }
    }

    var word: UInt64 { self == .getBase ? UInt64(Replaying.count) << 32 : 0 }
  }

  @Test(
    "What a predecessor left is done before a ring stands still, though its translations are yet to be asked for",
    arguments: Way.allCases)
  func finishes(_ way: Way) throws {
    let rig = try Replaying().started()
    let request = way.request(rig.frontend)
    try rig.frontend.send(request, ack: !request.hasAnswer)
    // Comes behind, and is answered behind.
    try rig.frontend.send(.getQueueCount)
    #expect(try rig.serveMisses() >= Int(Replaying.count), "a page of headers, and one for each read's data")
    let (first, second) = (try rig.frontend.nextAnswer(), try rig.frontend.nextAnswer())
    #expect(first == (request.kind.rawValue, way.word) && second == (FrontendRequest.Kind.getQueueCount.rawValue, 1))
    #expect(rig.left == 0 && rig.statuses == [0, 0, 0, 0])
  }

  @Test(
    "A channel that comes in place of a lost one while a ring stops is used at once: the ring asks on it for what it needs to stop",
    arguments: Way.allCases)
  func otherChannel(_ way: Way) throws {
    let rig = try Replaying().started()
    #expect(try rig.frontend.heard() != nil, "it waits for a translation")
    let old = try #require(rig.frontend.channel)
    let request = way.request(rig.frontend)
    try rig.frontend.send(request, ack: !request.hasAnswer)
    old.shutdown()
    try rig.frontend.openChannel(ack: false)
    try rig.frontend.send(.getQueueCount)
    if [.getBase, .disable, .newAddress].contains(way) {
      #expect(try rig.serveMisses() >= Int(Replaying.count))
      let first = try rig.frontend.nextAnswer()
      #expect(first == (request.kind.rawValue, way.word) && rig.left == 0 && rig.statuses == [0, 0, 0, 0])
    } else {
      // A device that begins anew asks nothing on it before it has: what could not be asked on the old one ends in
      // errors.
      let first = try rig.frontend.nextAnswer()
      #expect(first == (request.kind.rawValue, way.word))
      #expect(try rig.frontend.heard(within: .zero) == nil)
    }
    #expect(
      try rig.frontend.nextAnswer() == (FrontendRequest.Kind.getQueueCount.rawValue, 1),
      "what came behind is answered behind")
  }

  @Test(
    "A front-end that answers no question has its ring back in the end, and what was not done in the in-flight memory")
  func gaveUp() throws {
    let rig = try Replaying(patience: .milliseconds(200)).started()
    try rig.frontend.send(.getVringBase(VringState(0, 0)))
    #expect(
      try rig.frontend.nextAnswer() == (FrontendRequest.Kind.getVringBase.rawValue, UInt64(Replaying.count) << 32))
    #expect(rig.left == Int(Replaying.count) && rig.frontend.usedIndex == 0)
    // The back-end that goes on does it.
    try rig.start()
    _ = try rig.serveMisses()
    #expect(try rig.frontend.waitUsed(Replaying.count))
    #expect(rig.left == 0 && rig.statuses == [0, 0, 0, 0])
  }

  @Test("With GET_VRING_BASE_INFLIGHT what was not begun is left at once")
  func leaves() throws {
    let rig = try Replaying(protocol: RawFrontend.all.union(.vringBaseInflight)).started()
    try rig.frontend.send(.getVringBase(VringState(0, 0)))
    #expect(
      try rig.frontend.nextAnswer() == (FrontendRequest.Kind.getVringBase.rawValue, UInt64(Replaying.count) << 32))
    #expect(rig.left == Int(Replaying.count) && rig.frontend.usedIndex == 0)
  }

  @Test(
    "A connection that ends while a ring waits for translations ends, leaves what was not done, and no ring runs",
    arguments: [nil] + Way.allCases)
  func connectionEnds(_ way: Way?) throws {
    let rig = try Replaying().started()
    if let way { try rig.frontend.send(way.request(rig.frontend)) }
    #expect(try rig.frontend.heard() != nil, "it waits for a translation")
    rig.frontend.socket.shutdown()
    let begun = ContinuousClock.now
    while rig.frontend.server.statistics.isConnected, begun.duration(to: .now) < .seconds(5) {
      rig.frontend.kick.signal()
    }
    #expect(!rig.frontend.server.statistics.isConnected)
    #expect(rig.frontend.server.statistics.queues.allSatisfy { !$0.isRunning })
    #expect(rig.left == Int(Replaying.count) && rig.frontend.usedIndex == 0)
  }

  @Test(
    "While a ring waits for its storage to stop, translations are taken and acknowledged",
    .enabled("SKIPPED: no /dev/fuse, or not root") { SlowDisk.isThere() })
  func listensMeanwhile() throws {
    let storage = try SlowDisk(byteCount: 1 << 20, read: 400)
    var options = BlockOptions(path: storage.path)
    options.readOnly = true
    options.engine = .uring
    // To look at its first bytes would bring them into memory.
    options.insistsOnRaw = true
    let frontend = try RawFrontend(device: try BlockDevice(options))
    try frontend.negotiate([.version1, .accessPlatform])
    try frontend.share()
    try frontend.must(.iotlb(frontend.update(RawFrontend.iova, size: 0x10000)))
    try frontend.startRing(base: RawFrontend.iova)
    frontend.submitRead(sector: 1, base: RawFrontend.iova)
    while frontend.server.statistics.queues.first?.counts.requests != 1 {}
    try frontend.send(.getVringBase(VringState(0, 0)))
    try frontend.must(.iotlb(frontend.update(RawFrontend.iova + 0x20000)))
    #expect(frontend.usedIndex == 0, "the acknowledgement came before the read was over")
    let answer = try frontend.nextAnswer()
    #expect(answer == (FrontendRequest.Kind.getVringBase.rawValue, 1 << 32) && frontend.usedIndex == 1)
    withExtendedLifetime(storage) {}
  }

  @Test(
    "A back-end that takes a ring over anywhere but at its beginning calls once: its predecessor may have died before it did"
  )
  func callsOnce() throws {
    let frontend = try RawFrontend.sharing()
    // The predecessor used one entry.
    frontend.poke(UInt16(1).bytes, RawFrontend.Place.available + 2)
    frontend.poke(UInt16(1).bytes, RawFrontend.Place.used + 2)
    try frontend.startRing(at: 1)
    #expect(try frontend.call.wait(timeout: .seconds(10)))
    try frontend.stopRing()
    #expect(
      frontend.server.statistics.queues[0].counts.calls == 1
        && frontend.server.statistics.queues[0].counts.requests == 0)
    // A ring at its beginning owes nothing.
    let other = try RawFrontend.running()
    #expect(try other.read(sector: 1))
    try other.stopRing()
    #expect(other.server.statistics.queues[0].counts.calls == 1)
  }

  @Test(
    "A call descriptor is signalled when it comes, whether the ring runs or not: the back-end cannot know what the driver has missed",
    arguments: [false, true])
  func callsAtFirst(_ isRunning: Bool) throws {
    let frontend = try RawFrontend.sharing()
    if isRunning { try frontend.startRing() }
    let call = try EventFD()
    try frontend.must(.setVringCall(VringDescriptor(0)), [call.rawValue])
    #expect(try call.drain() == 1)
  }

  @Test(
    "A call descriptor that comes late, and one that was full and would block, hear of what was used",
    arguments: [false, true])
  func lateCall(_ isFull: Bool) throws {
    let frontend = try RawFrontend.running()
    try frontend.must(.setVringCall(VringDescriptor(index: 0, hasDescriptor: false)))
    frontend.submitRead(sector: 1)
    while frontend.usedIndex != 1 {}
    let late = try EventFD()
    if isFull { try late.fill() }
    try frontend.must(.setVringCall(VringDescriptor(0)), [late.rawValue])
    #expect(try late.wait(timeout: .seconds(10)))
    // The queue's thread is not stuck in a call whose eventfd is not read.
    frontend.submitRead(sector: 2)
    while frontend.usedIndex != 2 {}
    #expect(try frontend.stopRing() == RawFrontend.stopped(at: 2))
  }
}

extension EventFD {
  /// As full as it gets, and blocking: another signal would wait until it is drained.
  fileprivate func fill() throws {
    try FileHandle(fileDescriptor: rawValue).write(contentsOf: Data((UInt64.max - 1).bytes))
    #expect(fcntl(rawValue, F_SETFL, 0) == 0)
  }
}
