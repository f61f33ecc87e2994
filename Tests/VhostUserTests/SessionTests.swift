import HostIO
import Testing
import Virtio
import VirtioEntropy
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

@Suite("A vhost-user session, message by message", .timeLimit(.minutes(10))) struct SessionTests {
  @Test(
    "Offers: vhost's bits, the device's, and bit 33 unless told not to (R001, R002, R003)",
    arguments: AccessPlatformPolicy.allCases)
  func offers(_ policy: AccessPlatformPolicy) throws {
    let frontend = try RawFrontend(policy: policy)
    guard case .value(let word) = try frontend.ask(.getFeatures) else { return #expect(Bool(false)) }
    #expect(word & (1 << 26) != 0 && word & (1 << 30) != 0 && word & (1 << 32) != 0)
    #expect((word & (1 << 33) != 0) == (policy != .off))
    #expect(try frontend.ask(.getQueueCount) == .value(1))
    #expect(try frontend.ask(.getMaxMemorySlots) == .value(509))
    guard case .value(let protocolWord) = try frontend.ask(.getProtocolFeatures) else { return #expect(Bool(false)) }
    #expect(ProtocolFeatures(rawValue: protocolWord).isSuperset(of: RawFrontend.all))
    #expect(
      ProtocolFeatures(rawValue: protocolWord).isDisjoint(with: [.pageFault, .xenMmap, .sharedObject, .crossEndian]))
  }

  @Test(
    "Tables of descriptors are offered unless told not to, or where an IOMMU is certain and the device's requests have several pieces; a driver that uses one unoffered is refused",
    arguments: AccessPlatformPolicy.allCases, IndirectPolicy.allCases)
  func indirect(_ policy: AccessPlatformPolicy, _ indirect: IndirectPolicy) throws {
    let devices: [(any VirtioDevice)?] = [nil, EntropyDevice()]
    for device in devices {
      let frontend = try RawFrontend(policy: policy, indirect: indirect, device: device)
      let expected = indirect == .on || indirect == .auto && (policy != .on || device != nil)
      guard case .value(let word) = try frontend.ask(.getFeatures) else { return #expect(Bool(false)) }
      #expect((word & 1 << 28 != 0) == expected)
      // Nothing else comes or goes with it.
      #expect(word | 1 << 28 == frontend.server.statistics.offeredFeatures.word | 1 << 26 | 1 << 28 | 1 << 30)
      #expect(word & (1 << 29 | 1 << 34 | 1 << 35) == 1 << 29 | 1 << 34 | 1 << 35)
      let platform: UInt64 = policy == .off ? 0 : 1 << 33
      try frontend.negotiate(Features(word: platform | 1 << 32))
      #expect(try frontend.ask(.setFeatures(platform | 1 << 32 | 1 << 28), ack: true) == .value(expected ? 0 : 1))
      #expect(
        frontend.server.statistics.offersIndirect == expected && frontend.server.statistics.acceptsIndirect == expected)
    }
  }

  @Test(
    "A feature that was not offered is refused: with an answer where one is awaited, else the connection ends (R011, R140)"
  )
  func unofferedFeature() throws {
    let frontend = try RawFrontend(policy: .off)
    // All that bit 33 needs is there: only that it was not offered can refuse it. So comes a machine that had it
    // elsewhere.
    try frontend.negotiate()
    #expect(try frontend.ask(.setFeatures(1 << 33 | 1 << 32), ack: true) == .value(1))
    #expect(try frontend.ask(.setFeatures(1 << 57 | 1 << 32), ack: true) == .value(1))
    #expect(try frontend.ask(.getQueueCount) == .value(1))
    try frontend.send(.setFeatures(1 << 57 | 1 << 32))
    #expect(try frontend.isClosed())
  }

  @Test("Bit 33 needs the back-end channel, acknowledgements and VERSION_1 (R009, R122)")
  func accessPlatformNeeds() throws {
    let frontend = try RawFrontend()
    try frontend.send(.setProtocolFeatures([.replyAck]))
    #expect(try frontend.ask(.setFeatures(1 << 33 | 1 << 32), ack: true) == .value(1))
    try frontend.send(.setProtocolFeatures([.replyAck, .backendRequests]))
    #expect(try frontend.ask(.setFeatures(1 << 33), ack: true) == .value(1))
    try frontend.must(.setFeatures(1 << 33 | 1 << 32))
  }

  @Test(
    "No ring runs before features were accepted, nor after a reset until they are again (R013)",
    arguments: AccessPlatformPolicy.allCases)
  func noRingWithoutFeatures(_ policy: AccessPlatformPolicy) throws {
    let frontend = try RawFrontend(policy: policy)
    try frontend.send(.setProtocolFeatures(RawFrontend.all))
    try frontend.openChannel()
    try frontend.share()
    try frontend.startRing()
    frontend.submitRead(sector: 1)
    // What is refused is not accepted.
    if policy == .on { #expect(try frontend.ask(.setFeatures(1 << 32 | 1 << 30), ack: true) == .value(1)) }
    #expect(!(try frontend.call.wait(timeout: .milliseconds(300))) && frontend.usedIndex == 0)
    guard policy != .on else { return }
    try frontend.must(.setFeatures(1 << 32 | 1 << 30))
    #expect(try frontend.waitUsed(1))
    for reset in [FrontendRequest.resetDevice, .setStatus(0)] {
      try frontend.must(reset)
      try frontend.startRing(at: UInt32(frontend.availableIndex))
      frontend.submitRead(sector: 2)
      try frontend.call.drain()
      #expect(!(try frontend.call.wait(timeout: .milliseconds(300))), "\(reset.name)")
      #expect(frontend.usedIndex == frontend.availableIndex - 1, "\(reset.name)")
      try frontend.must(.setFeatures(1 << 32 | 1 << 30))
      #expect(try frontend.waitUsed(frontend.availableIndex), "\(reset.name)")
    }
  }

  @Test("Two legacy bits that QEMU passes on without an offer are ignored, and others are refused")
  func toleratedFeatures() throws {
    let frontend = try RawFrontend()
    try frontend.negotiate(word: 1 << 30 | 1 << 24 | 1 << 27)
    #expect(try frontend.ask(.setFeatures(1 << 32 | 1 << 25), ack: true) == .value(1))
    try frontend.share()
    _ = eventually { frontend.server.statistics.negotiatedFeatures.rawValue != 0 }
    #expect(frontend.server.statistics.negotiatedFeatures == .version1)
    try frontend.startRing()
    #expect(try frontend.read(sector: 1))
  }

  @Test("Taking back a single queue is not offered where no message can: there would be silence afterwards")
  func noRingReset() throws {
    let frontend = try RawFrontend()
    guard case .value(let word) = try frontend.ask(.getFeatures) else { return #expect(Bool(false)) }
    #expect(MemoryDisk(sectors: 1).features.contains(.ringReset) && word & Features.ringReset.word == 0)
  }

  @Test(
    "Messages that no front-end may send end the connection",
    arguments: [
      [9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0],
      [19, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 7],
      [8, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0],
      [11, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
    ] as [[UInt8]])
  func malformed(_ bytes: [UInt8]) throws {
    let frontend = try RawFrontend()
    try frontend.socket.send(bytes.span)
    #expect(try frontend.isClosed())
  }

  @Test("A message may come byte by byte")
  func bytewise() throws {
    let frontend = try RawFrontend()
    for byte in FrontendRequest.setProtocolFeatures(.replyAck).encoded() + FrontendRequest.getQueueCount.encoded() {
      try frontend.socket.send([byte].span)
    }
    let answer = try frontend.nextAnswer()
    #expect(answer == (17, 1))
  }

  @Test("Descriptors that a message must not have are closed, and those it lacks are missed")
  func strayDescriptors() throws {
    let frontend = try RawFrontend.negotiated()
    let (kept, given) = try UnixSocket.pair()
    #expect(try frontend.ask(.setOwner, ack: true, [given.rawValue]) == .value(1))
    given.shutdown()
    #expect(try kept.waitReadable(timeout: .seconds(5)))
    #expect(try frontend.ask(.setMemoryTable([frontend.region]), ack: true) == .value(1))
    #expect(try frontend.ask(.addMemoryRegion(frontend.region), ack: true) == .value(1))
    #expect(try frontend.ask(.setVringKick(VringDescriptor(0)), ack: true) == .value(1))
    #expect(try frontend.ask(.setVringKick(VringDescriptor(index: 1, hasDescriptor: false)), ack: true) == .value(1))
  }

  @Test("A listening back-end serves the next front-end after anything that the last one did")
  func acceptsAgain() throws {
    let house = try ConnectionAcceptorTests.House()
    for round in 1...3 {
      let socket = try UnixSocket.connect(to: house.path)
      if round < 3 { try socket.send([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12].span) }
      // The connection may have ended already.
      _ = try? socket.send(FrontendRequest.getQueueCount.encoded().span)
      let answer = try? RawFrontend.receive(socket)
      #expect((answer != nil) == (round == 3))
    }
    house.close()
    #expect(house.server.statistics.sessions == 3 && house.server.statistics.failedSessions == 2)
  }

  @Test(
    "Memory regions that are empty, wrap, overlap or are longer than their file are refused; the old table stays (R059)"
  )
  func badRegions() throws {
    let frontend = try RawFrontend.sharing()
    let file = frontend.memory.descriptor.rawValue
    let good = RegionDescription(guestAddress: 0x100_0000, size: 0x1000, frontendAddress: 0x100_0000, offset: 0)
    var empty = good, wraps = good, long = good, twin = frontend.region, far = good
    empty.size = 0
    wraps.guestAddress = .max - 0xfff + 1
    long.size = 2 << 20
    twin.guestAddress += RawFrontend.memorySize - 1
    far.offset = .max - 0xfff
    for bad in [empty, wraps, long, far] {
      #expect(try frontend.ask(.addMemoryRegion(bad), ack: true, [file]) == .value(1))
      #expect(try frontend.ask(.setMemoryTable([bad]), ack: true, [file]) == .value(1))
    }
    #expect(try frontend.ask(.addMemoryRegion(twin), ack: true, [file]) == .value(1))
    #expect(try frontend.ask(.setMemoryTable([good, good]), ack: true, [file, file]) == .value(1))
    #expect(try frontend.ask(.removeMemoryRegion(good), ack: true) == .value(1))
    try frontend.startRing()
    #expect(try frontend.read(sector: 3))
  }

  @Test("509 regions fit, one more does not, and one that goes makes room")
  func slots() throws {
    let frontend = try RawFrontend.negotiated()
    let file = frontend.memory.descriptor.rawValue
    func region(_ i: Int) -> RegionDescription {
      RegionDescription(
        guestAddress: UInt64(i) << 20, size: 0x1000, frontendAddress: 0x5000_0000_0000 + UInt64(i) << 20, offset: 0)
    }
    for i in 0..<509 { try frontend.must(.addMemoryRegion(region(i)), [file]) }
    #expect(try frontend.ask(.addMemoryRegion(region(509)), ack: true, [file]) == .value(1))
    try frontend.must(.removeMemoryRegion(region(17)), [file])
    try frontend.must(.addMemoryRegion(region(509)), [file])
    #expect(frontend.server.statistics.memoryRegions == 509)
  }

  @Test("Configuration space is read and written in pieces; outside of 256 bytes there is an empty answer")
  func configuration() throws {
    let frontend = try RawFrontend.negotiated()
    let wanted = ConfigurationBytes(offset: 0, bytes: [UInt8](repeating: 0, count: 8))
    #expect(
      try frontend.ask(.getConfiguration(wanted))
        == .configuration(ConfigurationBytes(offset: 0, bytes: UInt64(64).bytes)))
    try frontend.must(.setConfiguration(ConfigurationBytes(offset: 32, bytes: [0])))
    #expect(
      try frontend.ask(.getConfiguration(ConfigurationBytes(offset: 32, bytes: [9])))
        == .configuration(ConfigurationBytes(offset: 32, bytes: [0])))
    #expect(
      try frontend.ask(.getConfiguration(ConfigurationBytes(offset: 200, bytes: [UInt8](repeating: 0, count: 57))))
        == .configuration(nil))
    #expect(try frontend.ask(.getQueueCount) == .value(1))
  }

  @Test("The device status is kept and given back, and has eight bits")
  func status() throws {
    let frontend = try RawFrontend.negotiated()
    try frontend.must(.setStatus(0xf))
    #expect(try frontend.ask(.getStatus) == .value(0xf))
    #expect(try frontend.ask(.setStatus(0x100), ack: true) == .value(1))
    #expect(try frontend.ask(.getStatus) == .value(0xf))
  }

  @Test(
    "Requests of protocol features that were not negotiated are refused",
    arguments: [
      FrontendRequest.getStatus, .setStatus(1), .resetDevice,
      .getInflightDescriptor(InflightDescription(mmapSize: 0, mmapOffset: 0, queueCount: 1, queueSize: 8)),
      .getConfiguration(ConfigurationBytes(offset: 0, bytes: [0])), .checkDeviceState, .vringKick(VringState(0, 0)),
      .removeMemoryRegion(RegionDescription(guestAddress: 0, size: 1, frontendAddress: 0, offset: 0)),
      .iotlb(IOTLBMessage(kind: .invalidate, address: 0)),
    ])
  func notNegotiated(_ request: FrontendRequest) throws {
    let frontend = try RawFrontend()
    try frontend.send(.setProtocolFeatures(.replyAck))
    if request == .getStatus {
      try frontend.send(request)
      #expect(try frontend.isClosed())
      return
    }
    let answer = try frontend.ask(request, ack: true)
    let empty = InflightDescription(mmapSize: 0, mmapOffset: 0, queueCount: 0, queueSize: 0)
    #expect([.value(1), .configuration(nil), .inflight(empty)].contains(answer))
  }

  @Test("In-band notifications need the channel and acknowledgements: else the connection ends")
  func inbandNeeds() throws {
    let frontend = try RawFrontend()
    try frontend.send(.setProtocolFeatures([.inbandNotifications]))
    #expect(try frontend.isClosed())
  }
}
