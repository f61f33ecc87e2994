internal import DMA
internal import Examination
internal import HostIO
internal import SocketMessages

/// How a server took a command.
enum Reaction: Equatable {
  case answered([UInt8])
  case refused(Errno)
  case closed
}

/// A client's connection, for right commands and wrong ones. One thread uses it.
///
/// While it waits for a reply it serves what the server asks for: DMA_READ and DMA_WRITE.
final class Connection {
  let socket: UnixSocket
  let patience: Duration
  /// What the server's DMA_READ and DMA_WRITE reach.
  let memory: ClientMemory
  /// The most data of one transfer that the server takes.
  var transferLimit: UInt64 = 1 << 20
  /// Descriptors of the last reply.
  private(set) var passed = FileDescriptorList()
  private var next: UInt16 = 0

  init(_ socket: UnixSocket, memory: ClientMemory, patience: Duration) {
    self.socket = socket
    self.memory = memory
    self.patience = patience
  }

  /// Ends it.
  func close() { socket.shutdown() }

  // MARK: Sending

  /// Sends bytes as they are. False if the peer takes no more.
  @discardableResult
  func send(_ bytes: [UInt8], descriptors: [Int32] = []) throws(Finding) -> Bool {
    do throws(HostError) {
      try socket.send(bytes.span, descriptors: descriptors, timeout: patience)
      return true
    } catch {
      if error.errno == .brokenPipe || error.errno == .connectionReset { return false }
      throw error.errno == .timedOut ? .wedged("it reads no messages any more") : .notChecked("\(error)")
    }
  }

  /// Sends a command. Nil: the peer takes no more.
  func post(
    _ command: UInt16, _ payload: [UInt8] = [], flags: UInt32 = 0, size: UInt32? = nil, descriptors: [Int32] = []
  ) throws(Finding) -> UInt16? {
    next &+= 1
    let header = Header(
      id: next, command: command, size: size ?? UInt32(Header.byteCount + payload.count), flags: flags)
    return try send(header.encoded + payload, descriptors: descriptors) ? next : nil
  }

  /// Sends a command and observes what comes of it.
  func provoke(
    _ command: UInt16, _ payload: [UInt8] = [], descriptors: [Int32] = []
  ) throws(Finding) -> Reaction {
    guard let id = try post(command, payload, descriptors: descriptors) else { return .closed }
    return try reaction(to: id, command)
  }
  func provoke(
    _ command: Command, _ payload: [UInt8] = [], descriptors: [Int32] = []
  ) throws(Finding) -> Reaction {
    try provoke(command.rawValue, payload, descriptors: descriptors)
  }

  /// Sends a command that has to be done. Returns the payload of the reply.
  @discardableResult
  func ask(_ command: Command, _ payload: [UInt8] = [], descriptors: [Int32] = []) throws(Finding) -> [UInt8] {
    switch try provoke(command, payload, descriptors: descriptors) {
    case .answered(let bytes): return bytes
    case .refused(let error): throw .broken("\(command.name) was refused: \(error)")
    case .closed: throw .broken("the connection ended at \(command.name)")
    }
  }

  // MARK: Receiving

  private enum Incoming {
    case reply(Header, [UInt8])
    case closed
  }

  /// The reply to a command, or how the connection ended.
  func reaction(to id: UInt16, _ command: UInt16) throws(Finding) -> Reaction {
    switch try receive() {
    case .closed: return .closed
    case .reply(let header, let payload):
      let name = Command(rawValue: command)?.name ?? "command \(command)"
      try expect(
        header.id == id && header.command == command,
        "the reply to \(name), message \(id), is for command \(header.command), message \(header.id)")
      guard header.flags & Header.failed != 0 else { return .answered(payload) }
      try expect(payload.isEmpty, "the reply that refuses \(name) has a payload of \(payload.count) bytes")
      return .refused(Errno(rawValue: Int32(truncatingIfNeeded: header.error)))
    }
  }

  /// The next reply. Commands of the server's are served on the way.
  private func receive() throws(Finding) -> Incoming {
    passed = FileDescriptorList()
    let end = ContinuousClock.now + patience
    while true {
      guard let head = try take(Header.byteCount) else { return .closed }
      let header = try rethrowing(
        Header(decoding: head), saying: { Finding.broken("it sent a malformed message: \($0)") })
      var payload: [UInt8] = []
      if header.payloadByteCount > 0 {
        guard let bytes = try take(header.payloadByteCount) else { return .closed }
        payload = bytes
      }
      switch header.flags & 0xf {
      case Header.reply: return .reply(header, payload)
      case 0: try serve(header, payload)
      default: throw .broken("it sent a message of type \(header.flags & 0xf)")
      }
      guard ContinuousClock.now < end else { throw .wedged("it asks and asks, and answers nothing") }
    }
  }

  /// So many bytes, or nil if the connection ends first.
  private func take(_ count: Int) throws(Finding) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    do throws(HostError) {
      guard try socket.receiveAll(into: &span, descriptors: &passed, timeout: patience) else { return nil }
    } catch {
      if error.errno == .connectionReset || error.errno == .brokenPipe { return nil }
      throw error.errno == .timedOut ? .wedged("an answer did not come in time") : .notChecked("\(error)")
    }
    return bytes
  }

  /// Serves what the server asks for meanwhile, for this long; returns earlier when it has served something.
  func attend(_ time: Duration) throws(Finding) {
    guard (try? socket.waitReadable(timeout: time)) == true else { return }
    let seen: [UInt8]?
    do throws(HostError) { seen = try socket.peek(Header.byteCount) } catch { throw .notChecked("\(error)") }
    guard let first = seen else { return }
    guard !first.isEmpty else { throw .broken("it closed the connection") }
    guard first.count == Header.byteCount else { return }
    let header = try rethrowing(
      Header(decoding: first), saying: { Finding.broken("it sent a malformed message: \($0)") })
    try expect(header.flags & 0xf == 0, "it sent a reply to nothing: command \(header.command), message \(header.id)")
    guard try take(Header.byteCount) != nil else { throw .broken("it closed the connection") }
    var payload: [UInt8] = []
    if header.payloadByteCount > 0 {
      guard let bytes = try take(header.payloadByteCount) else { throw .broken("it closed the connection") }
      payload = bytes
    }
    try serve(header, payload)
  }

  /// Answers a command of the server's.
  private func serve(_ header: Header, _ payload: [UInt8]) throws(Finding) {
    let (address, count) = (Wire.long(payload, 0), Wire.long(payload, 8))
    var answer: [UInt8]?
    switch Command(rawValue: header.command) {
    case .readDMA:
      try expect(payload.count == 16, "its DMA_READ has a payload of \(payload.count) bytes")
      try expect(count > 0 && count <= 1 << 20, "it asked for \(count) bytes in one DMA_READ")
      answer = memory.read(address, count).map { Wire.bytes(address) + Wire.bytes(count) + $0 }
    case .writeDMA:
      try expect(payload.count > 16, "its DMA_WRITE has a payload of \(payload.count) bytes")
      try expect(
        UInt64(payload.count - 16) == count, "its DMA_WRITE has \(payload.count - 16) bytes, and says \(count)")
      answer = memory.write(address, Array(payload[16...])) ? Wire.bytes(address) + Wire.bytes(count) : nil
    default: throw .broken("it sent command \(header.command), which is none of a server's")
    }
    guard header.flags & Header.noReply == 0 else { return }
    let reply = Header(
      id: header.id, command: header.command, size: UInt32(Header.byteCount + (answer?.count ?? 0)),
      flags: Header.reply | (answer == nil ? Header.failed : 0), error: answer == nil ? 14 : 0)
    try send(reply.encoded + (answer ?? []))
  }

  // MARK: Judging

  /// Whether the server still answers on this connection; false: it has closed it.
  func isAnswering() throws(Finding) -> Bool {
    if case .closed = try provoke(.getInfo, Wire.words(16, 0, 0, 0)) { return false }
    return true
  }

  /// For what may be taken or refused: the reaction in words, once the server has answered the next command, or has
  /// closed the connection.
  func survived(_ reaction: Reaction) throws(Finding) -> String {
    guard reaction != .closed else { return "it closed the connection" }
    let isOpen = try isAnswering()
    switch reaction {
    case .answered:
      return isOpen ? "it was taken, and the next command answered" : "it was taken, and the connection closed"
    case .refused(let error): return isOpen ? "it was refused: \(error)" : "it was refused, and the connection closed"
    case .closed: return "it closed the connection"
    }
  }

  /// For what has to be refused: how it was.
  func refused(_ reaction: Reaction, _ what: String) throws(Finding) -> String {
    if case .answered = reaction { throw .broken("\(what) was acknowledged as done") }
    return try survived(reaction)
  }
}
