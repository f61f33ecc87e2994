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
@Suite("Turns of a vhost-user session", .timeLimit(.minutes(10)))
struct ProtocolTests {
  private static func ring(_ index: UInt32, _ number: UInt32) -> VringState { VringState(index: index, number: number) }

  @Test("A ring that cannot run is the answer to messages about it, and to no others; it is announced once")
  func whoseFault() throws {
    let frontend = try RawFrontend.sharing(queues: 2)
    let error = try EventFD()
    try frontend.must(.setVringError(VringDescriptor(index: 0, hasDescriptor: true)), [error.rawValue])
    try frontend.must(.setVringSize(Self.ring(0, 16)))
    // Areas that no ring may have: their addresses are odd.
    try frontend.must(.setVringAddress(frontend.address(RawFrontend.frontend + 1)))
    try frontend.must(.setVringKick(VringDescriptor(index: 0, hasDescriptor: true)), [frontend.kick.rawValue])
    #expect(try frontend.ask(.setVringEnable(Self.ring(0, 1)), ack: true) == .value(1))
    try frontend.must(.setVringSize(Self.ring(1, 16)))
    var address = frontend.address(RawFrontend.frontend)
    address.index = 1
    try frontend.must(.setVringAddress(address))
    try frontend.must(.setVringKick(VringDescriptor(index: 1, hasDescriptor: true)), [frontend.kick.rawValue])
    try frontend.must(.setVringEnable(Self.ring(1, 1)))
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
    let log = try MemoryFile(name: "log", size: 1 << 16)
    #expect(
      try frontend.ask(.setLogBase(LogArea(size: 1 << 16, offset: 0)), ack: false, [log.descriptor.rawValue])
        == .success)
    let event = try EventFD()
    try frontend.must(.setLogDescriptor, [event.rawValue])
    try frontend.startRing(log: 1)
    #expect(try frontend.read(sector: 1))
    #expect(try event.wait(timeout: .seconds(10)))
    _ = try frontend.ask(.getVringBase(Self.ring(0, 0)))
    #expect(try event.drain() > 0)
    // The same pages again.
    try frontend.must(.setVringKick(VringDescriptor(index: 0, hasDescriptor: true)), [frontend.kick.rawValue])
    #expect(try frontend.read(sector: 2))
    _ = try frontend.ask(.getVringBase(Self.ring(0, 0)))
    #expect(try event.drain() == 0)
  }

  @Test(
    "CHECK_DEVICE_STATE is answered when the transfer has ended, not before, and later messages are answered after it"
  )
  func checkWaits() throws {
    let frontend = try RawFrontend()
    try frontend.negotiate()
    let saved = try state(of: frontend)
    let (writing, reading) = try UnixSocket.pair()
    let load = FrontendRequest.setDeviceStateDescriptor(DeviceStateTransfer(direction: .load))
    #expect(try frontend.ask(load, ack: false, [reading.rawValue]) == .value(0x100))
    try frontend.send(.checkDeviceState, ack: true)
    try frontend.send(.getQueueCount)
    try writing.send(saved.span)
    writing.shutdown()
    var none = FileDescriptorList()
    let answers = try (0..<2).map { _ in try #require(try RawFrontend.receive(frontend.socket, &none)) }
    #expect(answers.map(\.0.request) == [43, 17] && answers.map(\.1.word) == [0, 1])
    #expect(try frontend.ask(.checkDeviceState) == .value(1))
  }

  @Test("A front-end that asks for the end of a transfer and does not end it does not hold up a stop of the back-end")
  func checkAndStop() throws {
    let frontend = try RawFrontend()
    try frontend.negotiate()
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

  private func state(of frontend: RawFrontend) throws -> [UInt8] {
    let (ours, theirs) = try UnixSocket.pair()
    _ = try frontend.ask(
      .setDeviceStateDescriptor(DeviceStateTransfer(direction: .save)), ack: false, [theirs.rawValue])
    #expect(try frontend.ask(.checkDeviceState) == .success)
    var state = [UInt8](repeating: 0, count: 17)
    var span = state.mutableSpan
    var none = FileDescriptorList()
    #expect(try ours.receiveAll(into: &span, descriptors: &none, timeout: .seconds(5)))
    return state
  }

  @Test("A front-end that sends a burst of requests before it reads the first answer gets them all, in order")
  func burst() throws {
    let frontend = try RawFrontend.sharing([.version1, .accessPlatform])
    for n in 0..<1000 as Range<UInt64> {
      // More than the sockets hold.
      try frontend.send(.iotlb(frontend.update(RawFrontend.iova + n << 12, to: 0)))
      try frontend.send(.getQueueCount)
    }
    var none = FileDescriptorList()
    for _ in 0..<1000 {
      for (request, word) in [(22, 0), (17, 1)] as [(UInt32, UInt64)] {
        let (header, payload) = try #require(try RawFrontend.receive(frontend.socket, &none))
        try #require(header.request == request && payload.word == word)
      }
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
    var files = FileDescriptorList()
    let wanted = InflightDescription(mmapSize: 0, mmapOffset: 0, queueCount: 1, queueSize: 16)
    guard case .inflight(let area) = try frontend.ask(.getInflightDescriptor(wanted), ack: false, [], &files),
      let file = files.takeFirst()
    else { return #expect(Bool(false)) }
    let mapping = try HostMapping(descriptor: file.rawValue, offset: 0, byteCount: Int(area.mmapSize))
    func usedIndex() -> UInt16? { mapping.cells(from: 0, byteCount: Int(area.mmapSize))?.load16(at: 14) }
    try frontend.must(.setInflightDescriptor(area), [file.rawValue])
    try frontend.startRing()
    #expect(try frontend.read(sector: 1))
    try frontend.must(.resetDevice)
    #expect(usedIndex() == 1)
    try frontend.must(.setFeatures(Features.version1.word | 1 << 30))
    try frontend.startRing(at: 1)
    #expect(try frontend.read(sector: 2))
    _ = try frontend.ask(.getVringBase(Self.ring(0, 0)))
    #expect(usedIndex() == 1)
  }

  @Test(
    "GET_VRING_BASE leaves what is in flight to the memory for it if that is agreed, else waits for it",
    arguments: [true, false])
  func handOver(_ isAgreed: Bool) throws {
    let disk = try HoldingDevice(.block)
    let frontend = try RawFrontend.sharing(
      protocol: isAgreed ? RawFrontend.all.union(.vringBaseInflight) : RawFrontend.all, device: disk)
    var files = FileDescriptorList()
    let wanted = InflightDescription(mmapSize: 0, mmapOffset: 0, queueCount: 1, queueSize: 16)
    guard case .inflight(let area) = try frontend.ask(.getInflightDescriptor(wanted), ack: false, [], &files),
      let file = files.takeFirst()
    else { return #expect(Bool(false)) }
    try frontend.must(.setInflightDescriptor(area), [file.rawValue])
    try frontend.startRing()
    frontend.submitRead(sector: 1)
    #expect(try disk.taken.wait(timeout: .seconds(10)))
    try disk.taken.drain()
    #expect(try frontend.ask(.getVringBase(Self.ring(0, 0))) == .vring(Self.ring(0, 1)))
    #expect(
      frontend.usedIndex == (isAgreed ? 0 : 1) && frontend.peek(1, RawFrontend.Place.status) == [isAgreed ? 0xff : 0])
    // The back-end that goes on does it, once.
    try frontend.must(.setVringBase(Self.ring(0, 1)))
    try frontend.must(.setVringKick(VringDescriptor(index: 0, hasDescriptor: true)), [frontend.kick.rawValue])
    if isAgreed { #expect(try disk.taken.wait(timeout: .seconds(10))) }
    disk.release.signal()
    #expect(try frontend.waitUsed(1))
    #expect(try frontend.ask(.getVringBase(Self.ring(0, 0))) == .vring(Self.ring(0, 1)))
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
    let frontend = try RawFrontend()
    try frontend.negotiate()
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
    try frontend.send(.iotlb(IOTLBMessage(kind: .invalidate, address: 0, size: .max)), ack: true)
    try frontend.send(.getVringBase(Self.ring(0, 0)))
    // Once the queue has noticed, it asks for its ring.
    while try frontend.heard(within: .milliseconds(10)) == nil { frontend.kick.signal() }
    disk.release.signal()
    var none = FileDescriptorList()
    let first = try #require(try RawFrontend.receive(frontend.socket, &none))
    let second = try #require(try RawFrontend.receive(frontend.socket, &none))
    #expect(first.0.request == 22 && first.1.word == 0 && second.0.request == 11)
    #expect(second.1.word >> 32 == 1 && frontend.usedIndex == 1)
  }
}
