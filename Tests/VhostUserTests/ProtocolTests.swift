import DMA
import HostIO
import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

/// What the protocol says between the lines: which answer belongs to which request, which side waits for which, what
/// outlives what.
@Suite("Turns of a vhost-user session", .timeLimit(.minutes(10))) struct ProtocolTests {
  @Test("A ring that cannot run is the answer to messages about it, and to no others; it is announced once")
  func whoseFault() throws {
    let frontend = try RawFrontend.sharing(queues: 2)
    let error = try EventFD()
    try frontend.must(.setVringError(VringDescriptor(0)), [error.rawValue])
    // Areas that no ring may have: their addresses are odd.
    try frontend.describeRing(base: RawFrontend.frontend + 1)
    try frontend.giveKick()
    #expect(try frontend.ask(.setVringEnable(VringState(0, 1)), ack: true) == .value(1))
    try frontend.must(.setVringSize(VringState(1, 16)))
    var address = frontend.address(RawFrontend.frontend)
    address.index = 1
    try frontend.must(.setVringAddress(address))
    try frontend.must(.setVringKick(VringDescriptor(1)), [frontend.kick.rawValue])
    try frontend.must(.setVringEnable(VringState(1, 1)))
    #expect(try error.drain() == 1)
    // All of the memory is a message about every ring, and took effect.
    try frontend.must(.setMemoryTable([frontend.region]), [frontend.memory.descriptor.rawValue])
    #expect(frontend.server.statistics.queues.map(\.isRunning) == [false, true])
  }

  @Test("A log without shared memory is refused once, and with an answer only where one is asked for")
  func logWithoutMemory() throws {
    let frontend = try RawFrontend()
    try frontend.send(.setProtocolFeatures(.replyAck))
    let file = frontend.memory.descriptor.rawValue
    #expect(try frontend.ask(.setLogBase(LogArea(size: 4096, offset: 0)), ack: true, [file]) == .value(1))
    #expect(try frontend.ask(.getQueueCount) == .value(1))
    try frontend.send(.setLogBase(LogArea(size: 4096, offset: 0)), [file])
    #expect(try frontend.isClosed())
  }

  @Test("The descriptor of SET_LOG_FD is signalled when the log changed, and not when it stayed as it was (R132)")
  func logEvent() throws {
    let frontend = try RawFrontend.sharing(word: 1 << 30 | 1 << 26)
    _ = try frontend.startLog(bytes: 1 << 16)
    let event = try EventFD()
    try frontend.must(.setLogDescriptor, [event.rawValue])
    try frontend.startRing(log: 1)
    #expect(try frontend.read(sector: 1))
    #expect(try event.wait(timeout: .seconds(10)))
    try frontend.stopRing()
    #expect(try event.drain() > 0)
    // The same pages again.
    try frontend.giveKick()
    #expect(try frontend.read(sector: 2))
    try frontend.stopRing()
    #expect(try event.drain() == 0)
  }

  @Test(
    "CHECK_DEVICE_STATE is answered when the transfer has ended, not before, and later messages are answered after it"
  )
  func checkWaits() throws {
    let frontend = try RawFrontend.negotiated()
    let saved = try frontend.saveState()
    let (writing, reading) = try UnixSocket.pair()
    let load = FrontendRequest.setDeviceStateDescriptor(DeviceStateTransfer(direction: .load))
    #expect(try frontend.ask(load, ack: false, [reading.rawValue]) == .value(0x100))
    try frontend.send(.checkDeviceState, ack: true)
    try frontend.send(.getQueueCount)
    try writing.send(saved.span)
    writing.shutdown()
    let answers = try (0..<2).map { _ in try frontend.nextAnswer() }
    #expect(answers.map(\.request) == [43, 17] && answers.map(\.word) == [0, 1])
    #expect(try frontend.ask(.checkDeviceState) == .value(1))
  }

  @Test("A front-end that asks for the end of a transfer and does not end it does not hold up a stop of the back-end")
  func checkAndStop() throws {
    let frontend = try RawFrontend.negotiated()
    let (writing, reading) = try UnixSocket.pair()
    _ = try frontend.ask(
      .setDeviceStateDescriptor(DeviceStateTransfer(direction: .load)), ack: false, [reading.rawValue])
    try frontend.send(.checkDeviceState)
    let begin = ContinuousClock.now
    frontend.server.stop()
    #expect(try frontend.isClosed())
    #expect(ContinuousClock.now - begin < .seconds(5))
    withExtendedLifetime(writing) {}
  }

  @Test("A front-end that sends a burst of requests before it reads the first answer gets them all, in order")
  func burst() throws {
    let frontend = try RawFrontend.sharing([.version1, .accessPlatform])
    for n in 0..<1000 as Range<UInt64> {
      // More than the sockets hold.
      try frontend.send(.iotlb(frontend.update(RawFrontend.iova + n << 12, to: 0)))
      try frontend.send(.getQueueCount)
    }
    for _ in 0..<1000 {
      for expected in [(22, 0), (17, 1)] as [(UInt32, UInt64)] { try #require(try frontend.nextAnswer() == expected) }
    }
    #expect(frontend.server.statistics.iotlb.updates == 1000)
  }

  @Test("A front-end that never stops sending does not keep the back-end from stopping")
  func flood() throws {
    let frontend = try RawFrontend()
    let socket = frontend.socket
    let begun = try EventFD()
    let flood = try WorkerThread(name: "flood") {
      let bytes = (0..<300).flatMap { _ in FrontendRequest.setOwner.encoded() }
      while (try? socket.send(bytes.span, timeout: .seconds(5))) != nil { begun.signal() }
    }
    #expect(try begun.wait(timeout: .seconds(10)))
    frontend.server.stop()
    // It ends when the back-end has closed the connection.
    flood.join()
  }

  @Test("RESET_DEVICE forgets the in-flight memory: the next driver's requests are not written down there")
  func resetForgetsInflight() throws {
    let frontend = try RawFrontend.sharing()
    let record = try RawFrontend.Record(of: frontend)
    try frontend.install(record)
    try frontend.startRing()
    #expect(try frontend.read(sector: 1))
    try frontend.must(.resetDevice)
    #expect(record.usedIndex == 1)
    try frontend.must(.setFeatures(Features.version1.word | 1 << 30))
    try frontend.startRing(at: 1)
    #expect(try frontend.read(sector: 2))
    try frontend.stopRing()
    #expect(record.usedIndex == 1)
  }

  @Test(
    "GET_VRING_BASE leaves what is in flight to the memory for it if that is agreed, else waits for it",
    arguments: [true, false])
  func handOver(_ isAgreed: Bool) throws {
    let disk = try HoldingDevice(.block)
    let frontend = try RawFrontend.sharing(
      protocol: isAgreed ? RawFrontend.all.union(.vringBaseInflight) : RawFrontend.all, device: disk)
    let record = try RawFrontend.Record(of: frontend)
    try frontend.install(record)
    try frontend.startRing()
    frontend.submitRead(sector: 1)
    #expect(try disk.taken.wait(timeout: .seconds(10)))
    try disk.taken.drain()
    #expect(try frontend.stopRing() == RawFrontend.stopped(at: 1))
    #expect(
      frontend.usedIndex == (isAgreed ? 0 : 1) && frontend.peek(1, RawFrontend.Place.status) == [isAgreed ? 0xff : 0])
    // The back-end that goes on does it, once.
    try frontend.must(.setVringBase(VringState(0, 1)))
    try frontend.giveKick()
    if isAgreed { #expect(try disk.taken.wait(timeout: .seconds(10))) }
    disk.release.signal()
    #expect(try frontend.waitUsed(1))
    #expect(try frontend.stopRing() == RawFrontend.stopped(at: 1))
    #expect(frontend.usedIndex == 1 && frontend.server.statistics.queues[0].counts.requests == (isAgreed ? 2 : 1))
  }

  @Test("Acknowledgements and the back-end's channel stay agreed while bit 33 is in force (R122)")
  func neededFeatures() throws {
    let frontend = try RawFrontend()
    try frontend.negotiate([.version1, .accessPlatform])
    #expect(try frontend.ask(.setProtocolFeatures(.replyAck), ack: true) == .value(1))
    try frontend.must(.setProtocolFeatures([.replyAck, .backendRequests]))
  }

  @Test("A write to the configuration space with undefined flags is refused")
  func configurationFlags() throws {
    let frontend = try RawFrontend.negotiated()
    #expect(
      try frontend.ask(.setConfiguration(ConfigurationBytes(offset: 32, flags: 2, bytes: [0])), ack: true) == .value(1))
    try frontend.must(.setConfiguration(ConfigurationBytes(offset: 32, flags: 1, bytes: [0])))
  }

  @Test(
    "A ring that stops right after all its mappings were taken back has given back what it had taken (R064, R110, R114)"
  )
  func stoppedWhileWithdrawn() throws {
    let disk = try HoldingDevice(.block)
    let frontend = try RawFrontend.sharing([.version1, .accessPlatform], device: disk)
    try frontend.must(.iotlb(frontend.update(RawFrontend.iova, size: 0x10000)))
    try frontend.startRing(base: RawFrontend.iova)
    frontend.submitRead(sector: 1, base: RawFrontend.iova)
    #expect(try disk.taken.wait(timeout: .seconds(10)))
    // As QEMU's main thread does it: one after the other, and no miss is answered in between.
    try frontend.send(.iotlb(.invalidate(0, .max)), ack: true)
    try frontend.send(.getVringBase(VringState(0, 0)))
    // Once the queue has noticed, it asks for its ring.
    while try frontend.heard(within: .milliseconds(10)) == nil { frontend.kick.signal() }
    disk.release.signal()
    let (first, second) = (try frontend.nextAnswer(), try frontend.nextAnswer())
    #expect(first.request == 22 && first.word == 0 && second.request == 11)
    #expect(second.word >> 32 == 1 && frontend.usedIndex == 1)
  }
}
