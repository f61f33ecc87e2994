internal import DMA
internal import HostIO
internal import Logging
internal import PCI
internal import SocketMessages

/// One client, from its connection to its end.
///
/// Its commands are done in order, by one thread. A command that has to wait for I/O under way, such as an unmap, makes
/// the client wait: that is what its answer promises.
final class VfioSession {
  typealias Stream = MessageStream<VfioHeader>

  /// What a command's reply is.
  struct Answer {
    var payload: [UInt8] = []
    /// To go along; they stay the sender's.
    var descriptors: [Int32] = []
    var errno: Errno?
    static func failed(_ errno: Errno) -> Answer { Answer(errno: errno) }
  }

  private let hosted: HostedFunction
  private let socket: UnixSocket
  private let log: Logger
  private var stream: Stream
  /// Instead of the stream, once the client's memory is reached by messages.
  private var reader: MessageReader?
  private var isAgreed = false
  /// Why a session ended well; any other reason is a failure.
  static let closed = "it closed the connection"
  static let stopped = "the server stops"
  /// How long a client may take to read an answer.
  private static let patience = Duration.seconds(10)

  init(_ hosted: HostedFunction, _ socket: UnixSocket, _ log: Logger) {
    self.hosted = hosted
    self.socket = socket
    self.log = log
    stream = Stream(socket)
  }

  /// Serves until the client goes, or `stop`. Returns why it ended.
  func run(stop: EventFD) throws(HostError) -> String {
    let messages = hosted.memory.messages
    messages.attach(socket)
    defer {
      hosted.endDoorbells()
      hosted.interrupts.removeAll()
      hosted.memory.removeAll()
      reader?.end()
      // Somebody else may hold the socket, and the client would wait for answers that never come.
      socket.shutdown()
    }
    while true {
      do throws(StreamEnding) {
        while let message = try next() {
          if message.header.isReply {
            guard messages.take(message.header, message.payload) else {
              return "it answers a command that was never sent, or wrongly"
            }
            continue
          }
          messages.setBusy(true)
          defer { messages.setBusy(false) }
          if let why = try handle(message, stop) { return why }
        }
      } catch {
        switch error {
        case .closed: return Self.closed
        case .cut: return "it closed the connection within a message"
        case .host(let error): return "\(error)"
        case .peer(let error): return "\(error)"
        }
      }
      guard try wait(stop) else { return Self.stopped }
    }
  }

  private func wait(_ stop: EventFD) throws(HostError) -> Bool {
    if let reader { return try reader.wait(cancel: stop) }
    return try socket.waitReadable(cancel: stop)
  }

  /// The next message, or nil when none is here. Answers come through by themselves once there is a reader.
  private func next() throws(StreamEnding) -> IncomingMessage<VfioHeader>? {
    if reader == nil, hosted.memory.needsMessages {
      let messages = hosted.memory.messages
      reader = try rethrowing(
        MessageReader(socket) { header, payload in messages.take(header, payload) }, as: StreamEnding.host)
    }
    if let reader { return try reader.next() }
    return try stream.next()
  }

  /// Does one command. A sentence: the connection cannot go on.
  private func handle(_ message: consuming IncomingMessage<VfioHeader>, _ stop: EventFD) throws(StreamEnding) -> String?
  {
    let header = message.header
    let answer: Answer
    do throws(ProtocolError) {
      answer = try self.answer(to: header, message.payload, &message.descriptors)
    } catch {
      log.warning("\(error)")
      answer = .failed(.invalidArgument)
    }
    guard header.wantsReply else { return nil }
    let flags = VfioHeader.reply | (answer.errno == nil ? 0 : VfioHeader.failed)
    let bytes = VfioHeader.frame(
      id: header.id, command: header.command, flags: flags, error: UInt32(answer.errno?.rawValue ?? 0),
      answer.errno == nil ? answer.payload : [])
    try rethrowing(
      hosted.memory.messages.send(
        bytes, descriptors: answer.descriptors, timeout: Self.patience, cancel: stop), as: StreamEnding.host)
    return isAgreed ? nil : "there is no version that both sides speak"
  }

  private func answer(
    to header: VfioHeader, _ payload: [UInt8], _ descriptors: inout FileDescriptorList
  ) throws(ProtocolError) -> Answer {
    guard let command = VfioCommand(rawValue: header.command) else { return .failed(.noFunction) }
    guard isAgreed || command == .version else {
      throw ProtocolError(command.name, "it comes before VERSION")
    }
    switch command {
    case .version: return try agree(payload)
    case .mapDMA: return try map(payload, &descriptors)
    case .unmapDMA: return try unmap(payload)
    case .getInfo: return try info(payload)
    case .getRegionInfo: return try regionInfo(payload)
    case .getInterruptInfo: return try interruptInfo(payload)
    case .setInterrupts: return try setInterrupts(payload, &descriptors)
    case .readRegion: return try read(payload)
    case .writeRegion: return try write(payload)
    case .writeRegions: return try writeSeveral(payload)
    case .reset:
      hosted.reset()
      return Answer()
    case .getRegionDescriptors, .feature, .readMigrationData, .writeMigrationData, .readDMA, .writeDMA:
      return .failed(.notSupported)
    }
  }

  private func agree(_ payload: [UInt8]) throws(ProtocolError) -> Answer {
    let proposal = try VersionRequest(decoding: payload)
    guard !isAgreed else { throw ProtocolError("VERSION", "it comes a second time") }
    guard proposal.major == 0 else {
      log.warning("the client speaks version \(proposal.major).\(proposal.minor) of the protocol, this server 0.0")
      return .failed(.notSupported)
    }
    isAgreed = true
    if let limit = proposal.number("max_data_xfer_size") { hosted.memory.messages.setTransferLimit(limit) }
    return Answer(payload: VersionRequest.answer(maxMappings: ClientMemory.maxMappings).encoded)
  }

  // MARK: Memory

  private func map(_ payload: [UInt8], _ descriptors: inout FileDescriptorList) throws(ProtocolError) -> Answer {
    let request = try MapRequest(decoding: payload, of: "DMA_MAP")
    guard descriptors.count <= 1 else { throw ProtocolError("DMA_MAP", "\(descriptors.count) descriptors came") }
    do throws(ClientMemory.Refusal) {
      try hosted.memory.map(request, descriptors.takeFirst())
    } catch {
      hosted.memory.ledger.refused()
      log.warning("DMA_MAP of \(request.size) bytes at \(request.address) is refused: \(error.reason)")
      return .failed(error.errno)
    }
    hosted.memory.ledger.mapped(hosted.memory.mappedBytes)
    return Answer()
  }

  private func unmap(_ payload: [UInt8]) throws(ProtocolError) -> Answer {
    let request = try UnmapRequest(decoding: payload, of: "DMA_UNMAP")
    do throws(ClientMemory.Refusal) {
      try hosted.memory.unmap(request)
    } catch {
      log.warning("DMA_UNMAP of \(request.size) bytes at \(request.address) is refused: \(error.reason)")
      return .failed(error.errno)
    }
    hosted.memory.ledger.unmapped()
    return Answer(payload: request.encoded)
  }

  // MARK: The device

  private func info(_ payload: [UInt8]) throws(ProtocolError) -> Answer {
    var info = try DeviceInfo(decoding: payload, of: "DEVICE_GET_INFO")
    guard info.argumentSize >= DeviceInfo.byteCount else { return .failed(.invalidArgument) }
    info.argumentSize = DeviceInfo.byteCount
    info.flags = DeviceInfo.resets | DeviceInfo.isPCI
    (info.regionCount, info.interruptCount) = (VfioRegion.count, VfioInterrupt.count)
    return Answer(payload: info.encoded)
  }

  private func regionInfo(_ payload: [UInt8]) throws(ProtocolError) -> Answer {
    let asked = try RegionInfo(decoding: payload, of: "DEVICE_GET_REGION_INFO")
    guard asked.argumentSize >= RegionInfo.byteCount, asked.index < VfioRegion.count else {
      return .failed(.invalidArgument)
    }
    var info = RegionInfo(index: asked.index)
    info.size = hosted.size(of: asked.index)
    if info.size > 0 { info.flags = RegionInfo.readable | RegionInfo.writable }
    guard let area = hosted.doorbells(in: asked.index) else { return Answer(payload: info.encoded) }
    let map = SparseMap(offset: area.offset, size: area.byteCount)
    info.argumentSize = RegionInfo.byteCount + SparseMap.byteCount
    // The client learns how much room it takes, and asks again. QEMU refuses a reply that tells of capabilities and is
    // without them.
    guard asked.argumentSize >= info.argumentSize else { return Answer(payload: info.encoded) }
    info.flags |= RegionInfo.mappable | RegionInfo.hasCapabilities
    info.capabilityOffset = RegionInfo.byteCount
    do throws(HostError) {
      let page = try hosted.shareDoorbells(area)
      return Answer(payload: info.encoded + map.encoded, descriptors: [page.descriptor])
    } catch {
      log.warning("doorbells cannot be shared: \(error)")
      return .failed(error.errno)
    }
  }

  private func interruptInfo(_ payload: [UInt8]) throws(ProtocolError) -> Answer {
    let asked = try InterruptInfo(decoding: payload, of: "DEVICE_GET_IRQ_INFO")
    guard asked.argumentSize >= InterruptInfo.byteCount, asked.index < VfioInterrupt.count else {
      return .failed(.invalidArgument)
    }
    var info = InterruptInfo(index: asked.index)
    info.count = UInt32(hosted.interruptCount(asked.index))
    if info.count > 0 {
      info.flags = InterruptInfo.eventfd | InterruptInfo.maskable
      if asked.index == VfioInterrupt.pin { info.flags |= InterruptInfo.automasked }
    }
    return Answer(payload: info.encoded)
  }

  // MARK: Regions

  private func read(_ payload: [UInt8]) throws(ProtocolError) -> Answer {
    let access = try RegionAccess(decoding: payload, of: "REGION_READ")
    guard access.count <= VfioHeader.transferLimit,
      let bytes = hosted.read(access.region, at: access.offset, count: Int(access.count))
    else { return .failed(.invalidArgument) }
    return Answer(payload: access.encoded + bytes)
  }

  private func write(_ payload: [UInt8]) throws(ProtocolError) -> Answer {
    var reader = PayloadReader(payload, of: "REGION_WRITE")
    let access = try RegionAccess(from: &reader)
    guard reader.remaining == Int(access.count) else {
      throw ProtocolError("REGION_WRITE", "\(reader.remaining) bytes follow, and it says \(access.count)")
    }
    let bytes = try reader.take(count: Int(access.count))
    guard hosted.write(access.region, at: access.offset, bytes) else { return .failed(.invalidArgument) }
    return Answer(payload: access.encoded)
  }

  /// REGION_WRITE_MULTI: a count, and as many writes of eight bytes at most.
  private func writeSeveral(_ payload: [UInt8]) throws(ProtocolError) -> Answer {
    var reader = PayloadReader(payload, of: "REGION_WRITE_MULTI")
    let count = try reader.take(UInt64.self)
    guard count <= 4096, reader.remaining == Int(count) * 24 else {
      throw ProtocolError("REGION_WRITE_MULTI", "\(reader.remaining) bytes follow, and it says \(count) writes")
    }
    var refused = false
    for _ in 0..<count {
      let access = try RegionAccess(from: &reader)
      let bytes = try reader.take(count: 8)
      guard access.count <= 8 else { throw ProtocolError("REGION_WRITE_MULTI", "a write has \(access.count) bytes") }
      if !hosted.write(access.region, at: access.offset, Array(bytes.prefix(Int(access.count)))) { refused = true }
    }
    return refused ? .failed(.invalidArgument) : Answer(payload: count.payload)
  }

  // MARK: Interrupts

  private func setInterrupts(
    _ payload: [UInt8], _ descriptors: inout FileDescriptorList
  ) throws(ProtocolError) -> Answer {
    let request = try SetInterrupts(decoding: payload, of: "DEVICE_SET_IRQS")
    do throws(HostError) {
      return try hosted.set(request, &descriptors) ? Answer() : .failed(.invalidArgument)
    } catch {
      return .failed(error.errno)
    }
  }
}
