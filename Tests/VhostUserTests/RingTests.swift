import DMA
import HostIO
import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

@Suite("Rings of a vhost-user session", .timeLimit(.minutes(10))) struct VhostRingTests {
  @Test("Without bit 33, ring addresses are the front-end's own and buffers guest-physical (R100, R006)")
  func physical() throws {
    let frontend = try RawFrontend.running()
    for sector in [0, 1, 63] as [UInt64] { #expect(try frontend.read(sector: sector)) }
    // A queue's figures are those of its last whole round.
    #expect(try frontend.stopRing() == RawFrontend.stopped(at: 3))
    let facts = frontend.server.statistics
    #expect(facts.addressPath == .physical && facts.queues[0].counts.requests == 3)
    #expect(facts.reachableBytes == RawFrontend.memorySize)
  }

  @Test("With GPA_ADDRESSES ring addresses are guest-physical, and a region's two addresses must be equal (R100)")
  func guestAddresses() throws {
    let frontend = try RawFrontend()
    try frontend.negotiate(protocol: RawFrontend.all.union(.guestAddresses))
    #expect(
      try frontend.ask(.setMemoryTable([frontend.region]), ack: true, [frontend.memory.descriptor.rawValue])
        == .value(1))
    var region = frontend.region
    region.frontendAddress = region.guestAddress
    try frontend.must(.setMemoryTable([region]), [frontend.memory.descriptor.rawValue])
    try frontend.startRing(base: RawFrontend.guest)
    #expect(try frontend.read(sector: 5))
  }

  @Test("A ring whose areas are not in the memory table does not start; said so, the session goes on (R041)")
  func badAddress() throws {
    let frontend = try RawFrontend.sharing()
    try frontend.describeRing(base: RawFrontend.frontend + RawFrontend.memorySize - 0x2000)
    try frontend.giveKick()
    #expect(try frontend.ask(.setVringEnable(VringState(0, 1)), ack: true) == .value(1))
    try frontend.must(.setVringAddress(frontend.address(RawFrontend.frontend)))
    #expect(try frontend.read(sector: 1))
  }

  @Test(
    "Sizes and indices out of bounds are refused",
    arguments: [
      FrontendRequest.setVringSize(VringState(0, 0)), .setVringSize(VringState(0, 3)),
      .setVringSize(VringState(0, 512)), .setVringSize(VringState(1, 16)),
      .setVringBase(VringState(0, 0x10000)), .setVringBase(VringState(7, 0)),
      .setVringEnable(VringState(0, 2)), .setVringEnable(VringState(1, 1)),
      .setVringAddress(VringAddress(index: 0, flags: 2, descriptorArea: 0, driverArea: 0, deviceArea: 0)),
      .setVringAddress(VringAddress(index: 9, descriptorArea: 0, driverArea: 0, deviceArea: 0)),
      .vringKick(VringState(4, 0)),
    ])
  func outOfBounds(_ request: FrontendRequest) throws {
    let frontend = try RawFrontend.negotiated()
    #expect(try frontend.ask(request, ack: true) == .value(1))
    #expect(try frontend.ask(.getQueueCount) == .value(1))
  }

  @Test("GET_VRING_BASE stops a ring, says where, and forgets nothing: a kick descriptor starts it again")
  func base() throws {
    let frontend = try RawFrontend.running()
    for sector in 0..<3 as Range<UInt64> { #expect(try frontend.read(sector: sector)) }
    #expect(try frontend.stopRing() == RawFrontend.stopped(at: 3))
    frontend.submitRead(sector: 4)
    #expect(try frontend.stopRing() == RawFrontend.stopped(at: 3))
    #expect(frontend.usedIndex == 3)
    try frontend.giveKick()
    #expect(try frontend.waitUsed(4))
  }

  @Test("SET_FEATURES without PROTOCOL_FEATURES enables every ring, and LOG_ALL does not disturb a running one")
  func features() throws {
    let frontend = try RawFrontend.sharing(word: 0)
    try frontend.describeRing()
    try frontend.giveKick()
    #expect(try frontend.read(sector: 2))
    try frontend.must(.setFeatures(Features.version1.word | 1 << 26))
    try frontend.must(.setVringAddress(frontend.address(RawFrontend.frontend, 1)))
    #expect(try frontend.read(sector: 3))
    #expect(try frontend.ask(.setFeatures(Features([.version1, .eventIndex]).word), ack: true) == .value(1))
    #expect(try frontend.read(sector: 4))
  }

  @Test("A disabled ring rests, and goes on where it was when enabled")
  func enable() throws {
    let frontend = try RawFrontend.running()
    #expect(try frontend.read(sector: 2))
    try frontend.must(.setVringEnable(VringState(0, 0)))
    frontend.submitRead(sector: 3)
    #expect(try frontend.ask(.getQueueCount) == .value(1))
    #expect(frontend.usedIndex == 1)
    try frontend.must(.setVringEnable(VringState(0, 1)))
    #expect(try frontend.waitUsed(2))
  }

  @Test("Kick and call descriptors are changed under a running ring, and no notification is lost")
  func descriptors() throws {
    let frontend = try RawFrontend.running()
    #expect(try frontend.read(sector: 2))
    let (kick, call) = (try EventFD(), try EventFD())
    try frontend.must(.setVringKick(VringDescriptor(0)), [kick.rawValue])
    try frontend.must(.setVringCall(VringDescriptor(0)), [call.rawValue])
    // The old descriptor is kicked: it has no reader any more.
    frontend.submitRead(sector: 3)
    kick.signal()
    #expect(try call.wait(timeout: .seconds(10)))
    #expect(try frontend.waitUsed(2))
  }

  @Test("Without a kick descriptor the ring is polled")
  func polled() throws {
    let frontend = try RawFrontend.running()
    try frontend.must(.setVringKick(VringDescriptor(index: 0, hasDescriptor: false)))
    #expect(try frontend.read(sector: 9))
  }

  @Test("In-band notifications: kicks and calls are messages")
  func inband() throws {
    let frontend = try RawFrontend.sharing(protocol: RawFrontend.all.union(.inbandNotifications))
    try frontend.describeRing()
    try frontend.must(.setVringEnable(VringState(0, 1)))
    frontend.submitRead(sector: 1)
    try frontend.must(.vringKick(VringState(0, 0)))
    let heard = try #require(try frontend.heard())
    #expect(heard.0 == .vringCall(VringState(0, 0)) && heard.needsReply)
    #expect(frontend.usedIndex == 1)
  }

  @Test("A ring that the driver breaks is announced, and works again after a reset (R073, R089)")
  func broken() throws {
    let frontend = try RawFrontend.sharing()
    let error = try EventFD()
    try frontend.must(.setVringError(VringDescriptor(0)), [error.rawValue])
    // An available index that ran further ahead than the ring is long.
    try frontend.startRing(at: 1000)
    frontend.kick.signal()
    #expect(try error.wait(timeout: .seconds(10)))
    #expect(try frontend.ask(.getStatus) == .value(0x40))
    try frontend.stopRing()
    try frontend.startRing()
    #expect(try frontend.read(sector: 1))
    #expect(try frontend.ask(.getStatus) == .value(0))
  }

  @Test("RESET_DEVICE forgets rings and features and keeps memory")
  func reset() throws {
    let frontend = try RawFrontend.running()
    #expect(try frontend.read(sector: 1))
    try frontend.must(.resetDevice)
    #expect(try frontend.stopRing() == RawFrontend.stopped(at: 0))
    try frontend.must(.setFeatures(Features.version1.word | 1 << 30))
    try frontend.startRing(at: 1)
    #expect(try frontend.read(sector: 2))
  }

  @Test("Device writes and the used ring are marked in the dirty log, by guest page, while LOG_ALL is set (R132)")
  func dirtyLog() throws {
    let frontend = try RawFrontend.sharing()
    try frontend.startRing(log: 1)
    let pages = (RawFrontend.guest + RawFrontend.memorySize) / 4096
    let bits = try frontend.startLog(bytes: pages / 8)
    func isMarked(_ place: Int) -> Bool {
      let page = (RawFrontend.guest + UInt64(place)) / 4096
      return bits.bytes(1, at: Int(page / 8))[0] & (1 << UInt8(page % 8)) != 0
    }
    #expect(try frontend.read(sector: 1))
    #expect(!isMarked(RawFrontend.Place.data))
    try frontend.must(.setFeatures(Features.version1.word | 1 << 30 | 1 << 26))
    #expect(try frontend.read(sector: 2))
    // All that the queue still does is over once the ring has stopped.
    try frontend.stopRing()
    #expect(isMarked(RawFrontend.Place.data) && isMarked(RawFrontend.Place.status) && isMarked(RawFrontend.Place.used))
    #expect(!isMarked(RawFrontend.Place.header))
  }

  @Test("The device's state goes out and comes back over the front-end's descriptor")
  func deviceState() throws {
    let frontend = try RawFrontend.negotiated()
    try frontend.must(.setConfiguration(ConfigurationBytes(offset: 32, bytes: [0])))
    let state = try frontend.saveState()
    #expect(state.last == 0)
    let target = try RawFrontend.negotiated()
    for (bytes, result) in [(state, UInt64(0)), (Array(state.dropLast()), 1), ([], 1)] {
      let (writing, reading) = try UnixSocket.pair()
      #expect(
        try target.ask(.setDeviceStateDescriptor(DeviceStateTransfer(direction: .load)), ack: false, [reading.rawValue])
          == .value(0x100))
      if !bytes.isEmpty { try writing.send(bytes.span) }
      writing.shutdown()
      #expect(try target.ask(.checkDeviceState) == .value(result))
    }
    #expect(
      try target.ask(.getConfiguration(ConfigurationBytes(offset: 32, bytes: [9])))
        == .configuration(ConfigurationBytes(offset: 32, bytes: [0])))
  }

  @Test("A changed configuration is announced, but not before a ring runs")
  func announcement() throws {
    let frontend = try RawFrontend.sharing()
    frontend.disk.configurationChanged()
    #expect(try frontend.ask(.getQueueCount) == .value(1))
    #expect(try frontend.heard(within: .zero) == nil)
    try frontend.startRing()
    #expect(try #require(try frontend.heard()).0 == .configurationChange)
    frontend.disk.configurationChanged()
    #expect(try #require(try frontend.heard()).0 == .configurationChange)
  }
}
