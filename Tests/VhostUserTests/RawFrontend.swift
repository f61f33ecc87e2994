import DMA
import Foundation
import HostIO
import Logging
import SocketMessages
import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

/// A front-end that sends exactly what a test says, and a back-end on a thread at the other end of a socket pair.
final class RawFrontend {
  let disk: MemoryDisk
  let server: VhostUserServer
  let socket: UnixSocket
  private(set) var channel: UnixSocket?
  let memory: MemoryFile
  let mapping: HostMapping
  let kick: EventFD
  let call: EventFD
  private let ended: EventFD

  static let guest: UInt64 = 0x4000_0000
  static let frontend: UInt64 = 0x7f00_0000_0000
  static let memorySize: UInt64 = 1 << 20
  /// Where the ring's areas and a request's parts are, from the start of memory: a page each.
  enum Place {
    static let descriptors = 0x1000, available = 0x2000, used = 0x3000, header = 0x4000, status = 0x5000, data = 0x8000
  }

  /// - Parameter device: what is served instead of ``disk``.
  init(
    policy: AccessPlatformPolicy = .auto, indirect: IndirectPolicy = .auto, sectors: Int = 64, nodes: Int = 1 << 15,
    queues: Int = 1, device: (any VirtioDevice)? = nil, patience: Duration? = nil, logger: Logger? = nil
  ) throws {
    disk = MemoryDisk(bytes: (0..<sectors * 512).map { UInt8(truncatingIfNeeded: $0 / 512 &* 7 &+ $0) }, queues: queues)
    let (ours, theirs) = try UnixSocket.pair()
    socket = ours
    memory = try MemoryFile(name: "guest", size: Self.memorySize)
    mapping = try HostMapping(descriptor: memory.descriptor.rawValue, offset: 0, byteCount: Int(Self.memorySize))
    kick = try EventFD()
    call = try EventFD()
    ended = try EventFD()
    var options = BackendOptions(name: "t", accessPlatform: policy, maxTranslationNodes: nodes)
    options.indirect = indirect
    if let patience { options.stopPatience = patience }
    server = try VhostUserServer(device ?? disk, on: .connected(theirs), options: options, log: logger ?? .silent)
    let (server, ended) = (server, ended)
    _ = try WorkerThread(name: "test-be") {
      try? server.run()
      ended.signal()
    }
  }

  deinit {
    server.stop()
    socket.shutdown()
    _ = try? ended.wait(timeout: .seconds(10))
  }

  // MARK: Messages

  func send(_ request: FrontendRequest, ack: Bool = false, _ descriptors: [Int32] = []) throws {
    let bytes = request.encoded(needsReply: ack)
    try socket.send(bytes.span, descriptors: descriptors, timeout: .seconds(5))
  }

  static func receive(_ socket: UnixSocket, _ descriptors: inout FileDescriptorList) throws -> (MessageHeader, [UInt8])?
  {
    var head = [UInt8](repeating: 0, count: MessageHeader.byteCount)
    var span = head.mutableSpan
    guard try socket.receiveAll(into: &span, descriptors: &descriptors, timeout: .seconds(10)) else { return nil }
    let header = try MessageHeader(decoding: head)
    guard header.size > 0 else { return (header, []) }
    var payload = [UInt8](repeating: 0, count: Int(header.size))
    var rest = payload.mutableSpan
    _ = try socket.receiveAll(into: &rest, descriptors: &descriptors, timeout: .seconds(10))
    return (header, payload)
  }

  /// A message that brings no descriptors.
  static func receive(_ socket: UnixSocket) throws -> (MessageHeader, [UInt8])? {
    var none = FileDescriptorList()
    return try receive(socket, &none)
  }

  /// Sends a request and reads its answer.
  func ask(_ request: FrontendRequest, ack: Bool = false, _ descriptors: [Int32] = []) throws -> BackendReply {
    var none = FileDescriptorList()
    return try ask(request, ack: ack, descriptors, &none)
  }

  func ask(
    _ request: FrontendRequest, ack: Bool, _ descriptors: [Int32], _ came: inout FileDescriptorList
  ) throws -> BackendReply {
    try send(request, ack: ack, descriptors)
    let (header, payload) = try #require(try Self.receive(socket, &came))
    #expect(header.request == request.kind.rawValue && header.flags == 5)
    if ack, !request.hasAnswer { return .value(try #require(payload.count == 8 ? payload.word : nil)) }
    return try BackendReply(to: request.kind, payload: payload)
  }

  /// Sends a request that must be acknowledged with success.
  func must(_ request: FrontendRequest, _ descriptors: [Int32] = []) throws {
    #expect(try ask(request, ack: true, descriptors) == .success, "\(request.name)")
  }

  /// True if the back-end closes the connection.
  func isClosed() throws -> Bool {
    do { return try Self.receive(socket) == nil } catch let error as HostError {
      return error.errno == .connectionReset
    }
  }

  // MARK: Steps

  static let all: ProtocolFeatures = [
    .multiqueue, .logSharedMemory, .replyAck, .backendRequests, .configuration, .inflightSharedMemory, .resetDevice,
    .configureMemorySlots, .status, .deviceState,
  ]

  func negotiate(
    _ features: Features = [.version1], protocol wanted: ProtocolFeatures = all, word more: UInt64 = 1 << 30
  ) throws {
    _ = try ask(.getFeatures)
    try send(.setProtocolFeatures(wanted))
    try send(.setOwner)
    if wanted.contains(.backendRequests) { try openChannel() }
    try must(.setFeatures(features.word | more))
  }

  /// One that has negotiated and shared its memory.
  static func sharing(
    _ features: Features = [.version1], protocol wanted: ProtocolFeatures = all, word more: UInt64 = 1 << 30,
    nodes: Int = 1 << 15, queues: Int = 1, device: (any VirtioDevice)? = nil, logger: Logger? = nil
  ) throws -> RawFrontend {
    let frontend = try RawFrontend(nodes: nodes, queues: queues, device: device, logger: logger)
    try frontend.negotiate(features, protocol: wanted, word: more)
    try frontend.share()
    return frontend
  }

  /// One that has negotiated.
  static func negotiated() throws -> RawFrontend {
    let frontend = try RawFrontend()
    try frontend.negotiate()
    return frontend
  }

  /// One whose ring runs.
  static func running() throws -> RawFrontend {
    let frontend = try RawFrontend.sharing()
    try frontend.startRing()
    return frontend
  }

  func openChannel(ack: Bool = true) throws {
    let (ours, theirs) = try UnixSocket.pair()
    channel = ours
    if ack {
      try must(.setBackendRequestDescriptor, [theirs.rawValue])
    } else {
      try send(.setBackendRequestDescriptor, [theirs.rawValue])
    }
  }

  var region: RegionDescription {
    RegionDescription(guestAddress: Self.guest, size: Self.memorySize, frontendAddress: Self.frontend, offset: 0)
  }

  func share() throws { try must(.setMemoryTable([region]), [memory.descriptor.rawValue]) }

  /// Describes and starts virtqueue 0 with its areas at `base` plus their places.
  func startRing(base: UInt64 = frontend, size: UInt32 = 16, at index: UInt32 = 0, log: UInt32 = 0) throws {
    try must(.setVringSize(VringState(0, size)))
    try must(.setVringBase(VringState(0, index)))
    try must(.setVringAddress(address(base, log)))
    try must(.setVringCall(VringDescriptor(0)), [call.rawValue])
    // That it came is signalled, and is not what a test waits for.
    try call.drain()
    try giveKick()
    try must(.setVringEnable(VringState(0, 1)))
  }

  func describeRing(base: UInt64 = frontend) throws {
    try must(.setVringSize(VringState(0, 16)))
    try must(.setVringAddress(address(base)))
  }

  func giveKick() throws { try must(.setVringKick(VringDescriptor(0)), [kick.rawValue]) }

  /// Stops virtqueue 0; where it stands.
  @discardableResult func stopRing() throws -> BackendReply { try ask(.getVringBase(VringState(0, 0))) }

  static func stopped(at index: UInt32) -> BackendReply { .vring(VringState(0, index)) }

  /// Memory for a ring's requests in flight, of the back-end's making.
  final class Record {
    let area: InflightDescription
    let file: FileDescriptor
    let mapping: HostMapping

    init(of frontend: RawFrontend) throws {
      var files = FileDescriptorList()
      let wanted = InflightDescription(mmapSize: 0, mmapOffset: 0, queueCount: 1, queueSize: 16)
      let reply = try frontend.ask(.getInflightDescriptor(wanted), ack: false, [], &files)
      guard case .inflight(let area) = reply, let file = files.takeFirst() else {
        throw ProtocolError("no in-flight memory", "")
      }
      mapping = try HostMapping(descriptor: file.rawValue, offset: 0, byteCount: Int(area.mmapSize))
      self.area = area
      self.file = file
    }

    /// The used index that a split ring's record has.
    var usedIndex: UInt16? { mapping.cells(from: 0, byteCount: mapping.byteCount)?.load16(at: 14) }
  }

  func install(_ record: Record) throws { try must(.setInflightDescriptor(record.area), [record.file.rawValue]) }

  /// A dirty log that is in force.
  func startLog(bytes: UInt64 = 1 << 20) throws -> HostMapping {
    let file = try MemoryFile(name: "log", size: bytes)
    let area = LogArea(size: bytes, offset: 0)
    #expect(try ask(.setLogBase(area), ack: false, [file.descriptor.rawValue]) == .success)
    return try HostMapping(descriptor: file.descriptor.rawValue, offset: 0, byteCount: Int(bytes))
  }

  /// The device's state, which the back-end writes to a socket.
  func saveState() throws -> [UInt8] {
    let (ours, theirs) = try UnixSocket.pair()
    let save = FrontendRequest.setDeviceStateDescriptor(DeviceStateTransfer(direction: .save))
    #expect(try ask(save, ack: false, [theirs.rawValue]) == .value(0x100))
    var state = [UInt8](repeating: 0, count: 17)
    var span = state.mutableSpan
    var none = FileDescriptorList()
    #expect(try ours.receiveAll(into: &span, descriptors: &none, timeout: .seconds(5)))
    #expect(try ask(.checkDeviceState) == .success)
    return state
  }

  /// The next message from the back-end, the answer to what was sent before.
  func nextAnswer() throws -> (request: UInt32, word: UInt64) {
    let (header, payload) = try #require(try Self.receive(socket))
    return (header.request, payload.word)
  }

  func address(_ base: UInt64, _ flags: UInt32 = 0) -> VringAddress {
    VringAddress(
      index: 0, flags: flags, descriptorArea: base + UInt64(Place.descriptors),
      driverArea: base + UInt64(Place.available),
      deviceArea: base + UInt64(Place.used), log: Self.guest + UInt64(Place.used))
  }

  // MARK: Requests

  func poke(_ bytes: [UInt8], _ offset: Int) { _ = mapping.copy(bytes.span, to: offset) }
  func peek(_ count: Int, _ offset: Int) -> [UInt8] { mapping.bytes(count, at: offset) }
  var usedIndex: UInt16 { UInt16(peek(2, Place.used + 2)[0]) | UInt16(peek(2, Place.used + 2)[1]) << 8 }

  private(set) var availableIndex: UInt16 = 0

  /// Makes a read of one sector available: a chain of three descriptors whose addresses are `base` plus their places.
  func submitRead(sector: UInt64, base: UInt64 = guest, data: Int = Place.data) {
    Self.prepareRead(mapping, sector: sector, at: availableIndex, base: base, data: data)
    availableIndex &+= 1
    kick.signal()
  }

  /// The same in any guest's memory, at an index of its ring, without a kick.
  static func prepareRead(
    _ memory: HostMapping, sector: UInt64, at index: UInt16, base: UInt64 = guest, data: Int = Place.data
  ) {
    func poke(_ bytes: [UInt8], _ offset: Int) { _ = memory.copy(bytes.span, to: offset) }
    poke(UInt64(0).bytes + sector.bytes, Place.header)
    poke([0xff], Place.status)
    poke([UInt8](repeating: 0xee, count: 512), data & Int(memorySize - 1))
    for (i, part) in [(Place.header, 16, 1, 1), (data, 512, 3, 2), (Place.status, 1, 2, 0)].enumerated() {
      poke(descriptor(base, part.0, UInt32(part.1), UInt16(part.2), UInt16(part.3)), Place.descriptors + 16 * i)
    }
    poke(UInt16(0).bytes, Place.available + 4 + 2 * Int(index % 16))
    poke((index &+ 1).bytes, Place.available + 2)
  }

  /// A descriptor of a split ring.
  static func descriptor(_ base: UInt64, _ place: Int, _ count: UInt32, _ flags: UInt16, _ next: UInt16) -> [UInt8] {
    (base + UInt64(place)).bytes + count.bytes + flags.bytes + next.bytes
  }

  /// Waits for the used index to become `index`.
  func waitUsed(_ index: UInt16) throws -> Bool {
    eventually(within: .seconds(10), on: call, every: .milliseconds(200)) { usedIndex == index }
  }

  /// A whole read: whether its data is the disk's.
  func read(sector: UInt64, base: UInt64 = guest) throws -> Bool {
    submitRead(sector: sector, base: base)
    guard try waitUsed(availableIndex) else { return false }
    let start = Int(sector) * 512
    return peek(1, Place.status) == [0] && peek(512, Place.data) == Array(disk.contents[start..<start + 512])
  }

  // MARK: The back-end's channel

  /// The back-end's next request, and whether it wants an answer; nil if none comes within the time.
  func heard(within time: Duration = .seconds(10)) throws -> (BackendRequest, needsReply: Bool)? {
    let channel = try #require(channel)
    guard try channel.waitReadable(timeout: time) else { return nil }
    guard let (header, payload) = try Self.receive(channel) else { return nil }
    return (try BackendRequest(request: header.request, payload: payload), header.needsReply)
  }

  func answer(_ request: UInt32 = 1, with value: UInt64) throws {
    let bytes = MessageHeader(request: request, flags: 5, size: 8).encoded + value.bytes
    try #require(channel).send(bytes.span, timeout: .seconds(5))
  }

  static let iova: UInt64 = 0x9_0000_0000

  /// A translation of the page at `address`, an I/O virtual address, to the same place of memory, or to another.
  func update(
    _ address: UInt64, to place: UInt64? = nil, _ permission: IOTLBMessage.Permission = [.read, .write],
    size: UInt64 = 4096
  ) -> IOTLBMessage {
    let page = address & ~4095
    return IOTLBMessage(
      kind: .update, address: page, size: size, frontendAddress: Self.frontend + (place ?? page - Self.iova),
      permission: permission)
  }

  /// Answers misses with identical mappings until `done`; returns what was asked. Of questions that come together the
  /// last one asks for an answer.
  func serveMisses(until done: () throws -> Bool) throws -> [IOTLBMessage] {
    var asked: [IOTLBMessage] = []
    var isAnswered = true
    _ = try eventually(within: .seconds(10), every: .zero) {
      guard try !done() else { return true }
      guard let (request, needsReply) = try heard(within: .milliseconds(20)) else { return false }
      guard case .iotlb(let message) = request, message.kind == .miss else { return false }
      isAnswered = needsReply
      asked.append(message)
      #expect(try ask(.iotlb(update(message.address)), ack: true) == .success)
      if needsReply { try answer(with: 0) }
      return false
    }
    #expect(isAnswered, "no question stays without an answer")
    return asked
  }
}
