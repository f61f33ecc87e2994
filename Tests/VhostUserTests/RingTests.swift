import DMA
import HostIO
import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

@Suite("Rings of a vhost-user session", .timeLimit(.minutes(10)))
struct VhostRingTests {
  @Test("Without bit 33, ring addresses are the front-end's own and buffers guest-physical (R100, R006)")
  func physical() throws {
    let frontend = try RawFrontend.sharing()
    try frontend.startRing()
    for sector in [0, 1, 63] as [UInt64] { #expect(try frontend.read(sector: sector)) }
    // A queue's figures are those of its last whole round.
    #expect(try frontend.ask(.getVringBase(VringState(index: 0, number: 0))) == .vring(VringState(index: 0, number: 3)))
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
    try frontend.must(.setVringSize(VringState(index: 0, number: 16)))
    try frontend.must(.setVringAddress(frontend.address(RawFrontend.frontend + RawFrontend.memorySize - 0x2000)))
    try frontend.must(.setVringKick(VringDescriptor(index: 0, hasDescriptor: true)), [frontend.kick.rawValue])
    #expect(try frontend.ask(.setVringEnable(VringState(index: 0, number: 1)), ack: true) == .value(1))
    try frontend.must(.setVringAddress(frontend.address(RawFrontend.frontend)))
    #expect(try frontend.read(sector: 1))
  }

  @Test(
    "Sizes and indices out of bounds are refused",
    arguments: [
      FrontendRequest.setVringSize(VringState(index: 0, number: 0)), .setVringSize(VringState(index: 0, number: 3)),
      .setVringSize(VringState(index: 0, number: 512)), .setVringSize(VringState(index: 1, number: 16)),
      .setVringBase(VringState(index: 0, number: 0x10000)), .setVringBase(VringState(index: 7, number: 0)),
      .setVringEnable(VringState(index: 0, number: 2)), .setVringEnable(VringState(index: 1, number: 1)),
      .setVringAddress(VringAddress(index: 0, flags: 2, descriptorArea: 0, driverArea: 0, deviceArea: 0)),
      .setVringAddress(VringAddress(index: 9, descriptorArea: 0, driverArea: 0, deviceArea: 0)),
      .vringKick(VringState(index: 4, number: 0)),
    ])
  func outOfBounds(_ request: FrontendRequest) throws {
    let frontend = try RawFrontend()
    try frontend.negotiate()
    #expect(try frontend.ask(request, ack: true) == .value(1))
    #expect(try frontend.ask(.getQueueCount) == .value(1))
  }

  @Test("GET_VRING_BASE stops a ring, says where, and forgets nothing: a kick descriptor starts it again")
  func base() throws {
    let frontend = try RawFrontend.sharing()
    try frontend.startRing()
    for sector in 0..<3 as Range<UInt64> { #expect(try frontend.read(sector: sector)) }
    #expect(try frontend.ask(.getVringBase(VringState(index: 0, number: 0))) == .vring(VringState(index: 0, number: 3)))
    frontend.submitRead(sector: 4)
    #expect(try frontend.ask(.getVringBase(VringState(index: 0, number: 0))) == .vring(VringState(index: 0, number: 3)))
    #expect(frontend.usedIndex == 3)
    try frontend.must(.setVringKick(VringDescriptor(index: 0, hasDescriptor: true)), [frontend.kick.rawValue])
    #expect(try frontend.waitUsed(4))
  }

  @Test("SET_FEATURES without PROTOCOL_FEATURES enables every ring, and LOG_ALL does not disturb a running one")
  func features() throws {
    let frontend = try RawFrontend.sharing(word: 0)
    try frontend.must(.setVringSize(VringState(index: 0, number: 16)))
    try frontend.must(.setVringAddress(frontend.address(RawFrontend.frontend)))
    try frontend.must(.setVringKick(VringDescriptor(index: 0, hasDescriptor: true)), [frontend.kick.rawValue])
    #expect(try frontend.read(sector: 2))
    try frontend.must(.setFeatures(Features.version1.word | 1 << 26))
    try frontend.must(.setVringAddress(frontend.address(RawFrontend.frontend, 1)))
    #expect(try frontend.read(sector: 3))
    #expect(try frontend.ask(.setFeatures(Features([.version1, .eventIndex]).word), ack: true) == .value(1))
    #expect(try frontend.read(sector: 4))
  }

  @Test("A disabled ring rests, and goes on where it was when enabled")
  func enable() throws {
    let frontend = try RawFrontend.sharing()
    try frontend.startRing()
    #expect(try frontend.read(sector: 2))
    try frontend.must(.setVringEnable(VringState(index: 0, number: 0)))
    frontend.submitRead(sector: 3)
    #expect(try frontend.ask(.getQueueCount) == .value(1))
    #expect(frontend.usedIndex == 1)
    try frontend.must(.setVringEnable(VringState(index: 0, number: 1)))
    #expect(try frontend.waitUsed(2))
  }

  @Test("Kick and call descriptors are changed under a running ring, and no notification is lost")
  func descriptors() throws {
    let frontend = try RawFrontend.sharing()
    try frontend.startRing()
    #expect(try frontend.read(sector: 2))
    let (kick, call) = (try EventFD(), try EventFD())
    try frontend.must(.setVringKick(VringDescriptor(index: 0, hasDescriptor: true)), [kick.rawValue])
    try frontend.must(.setVringCall(VringDescriptor(index: 0, hasDescriptor: true)), [call.rawValue])
    // The old descriptor is kicked: it has no reader any more.
    frontend.submitRead(sector: 3)
    kick.signal()
    #expect(try call.wait(timeout: .seconds(10)))
    #expect(try frontend.waitUsed(2))
  }

  @Test("Without a kick descriptor the ring is polled")
  func polled() throws {
    let frontend = try RawFrontend.sharing()
    try frontend.startRing()
    try frontend.must(.setVringKick(VringDescriptor(index: 0, hasDescriptor: false)))
    #expect(try frontend.read(sector: 9))
  }

  @Test("In-band notifications: kicks and calls are messages")
  func inband() throws {
    let frontend = try RawFrontend.sharing(protocol: RawFrontend.all.union(.inbandNotifications))
    try frontend.must(.setVringSize(VringState(index: 0, number: 16)))
    try frontend.must(.setVringAddress(frontend.address(RawFrontend.frontend)))
    try frontend.must(.setVringEnable(VringState(index: 0, number: 1)))
    frontend.submitRead(sector: 1)
    try frontend.must(.vringKick(VringState(index: 0, number: 0)))
    let heard = try #require(try frontend.heard())
    #expect(heard.0 == .vringCall(VringState(index: 0, number: 0)) && heard.needsReply)
    #expect(frontend.usedIndex == 1)
  }

  @Test("A ring that the driver breaks is announced, and works again after a reset (R073, R089)")
  func broken() throws {
    let frontend = try RawFrontend.sharing()
    let error = try EventFD()
    try frontend.must(.setVringError(VringDescriptor(index: 0, hasDescriptor: true)), [error.rawValue])
    // An available index that ran further ahead than the ring is long.
    try frontend.startRing(at: 1000)
    frontend.kick.signal()
    #expect(try error.wait(timeout: .seconds(10)))
    #expect(try frontend.ask(.getStatus) == .value(0x40))
    _ = try frontend.ask(.getVringBase(VringState(index: 0, number: 0)))
    try frontend.startRing()
    #expect(try frontend.read(sector: 1))
    #expect(try frontend.ask(.getStatus) == .value(0))
  }

  @Test("RESET_DEVICE forgets rings and features and keeps memory")
  func reset() throws {
    let frontend = try RawFrontend.sharing()
    try frontend.startRing()
    #expect(try frontend.read(sector: 1))
    try frontend.must(.resetDevice)
    #expect(try frontend.ask(.getVringBase(VringState(index: 0, number: 0))) == .vring(VringState(index: 0, number: 0)))
    try frontend.must(.setFeatures(Features.version1.word | 1 << 30))
    try frontend.startRing(at: 1)
    #expect(try frontend.read(sector: 2))
  }

  @Test("Device writes and the used ring are marked in the dirty log, by guest page, while LOG_ALL is set (R132)")
  func dirtyLog() throws {
    let frontend = try RawFrontend.sharing()
    try frontend.startRing(log: 1)
    let pages = (RawFrontend.guest + RawFrontend.memorySize) / 4096
    let log = try MemoryFile(name: "log", size: pages / 8)
    let bits = try HostMapping(descriptor: log.descriptor.rawValue, offset: 0, byteCount: Int(pages / 8))
    #expect(
      try frontend.ask(.setLogBase(LogArea(size: pages / 8, offset: 0)), ack: false, [log.descriptor.rawValue])
        == .success)
    func isMarked(_ place: Int) -> Bool {
      let page = (RawFrontend.guest + UInt64(place)) / 4096
      return bits.bytes(1, at: Int(page / 8))[0] & (1 << UInt8(page % 8)) != 0
    }
    #expect(try frontend.read(sector: 1))
    #expect(!isMarked(RawFrontend.Place.data))
    try frontend.must(.setFeatures(Features.version1.word | 1 << 30 | 1 << 26))
    #expect(try frontend.read(sector: 2))
    // All that the queue still does is over once the ring has stopped.
    _ = try frontend.ask(.getVringBase(VringState(index: 0, number: 0)))
    #expect(isMarked(RawFrontend.Place.data) && isMarked(RawFrontend.Place.status) && isMarked(RawFrontend.Place.used))
    #expect(!isMarked(RawFrontend.Place.header))
  }

  @Test("The device's state goes out and comes back over the front-end's descriptor")
  func deviceState() throws {
    let frontend = try RawFrontend()
    try frontend.negotiate()
    try frontend.must(.setConfiguration(ConfigurationBytes(offset: 32, bytes: [0])))
    let (ours, theirs) = try UnixSocket.pair()
    #expect(
      try frontend.ask(.setDeviceStateDescriptor(DeviceStateTransfer(direction: .save)), ack: false, [theirs.rawValue])
        == .value(0x100))
    var state = [UInt8](repeating: 0, count: 17)
    var span = state.mutableSpan
    var none = FileDescriptorList()
    #expect(try ours.receiveAll(into: &span, descriptors: &none, timeout: .seconds(5)))
    #expect(state.last == 0)
    #expect(try frontend.ask(.checkDeviceState) == .success)

    let target = try RawFrontend()
    try target.negotiate()
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
