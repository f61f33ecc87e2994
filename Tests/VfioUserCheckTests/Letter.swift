import HostIO
import Synchronization

/// A message that passes between a client and a server.
struct Letter {
  var id: UInt16
  var command: UInt16
  var flags: UInt32
  var error: UInt32
  var payload: [UInt8]
  /// The files that came along.
  var files: [Int32]
  var fromClient: Bool
  let mail: Mail

  var isReply: Bool { flags & 0xf == 1 }
  var hasFailed: Bool { flags & 0x20 != 0 }

  /// From the client, and this command.
  func asks(_ command: UInt16) -> Bool { fromClient && !isReply && self.command == command }
  /// The server's reply to this command.
  func answers(_ command: UInt16) -> Bool { !fromClient && isReply && self.command == command }

  func half(_ offset: Int) -> UInt32 { UInt32(truncatingIfNeeded: number(offset, 4)) }
  func number(_ offset: Int, _ count: Int) -> UInt64 {
    guard offset + count <= payload.count else { return 0 }
    return (0..<count).reduce(0) { $0 | UInt64(payload[offset + $1]) << (8 * UInt64($1)) }
  }
  mutating func put(_ value: UInt64, _ offset: Int, _ count: Int) {
    guard offset + count <= payload.count else { return }
    for i in 0..<count { payload[offset + i] = UInt8(truncatingIfNeeded: value >> (8 * UInt64(i))) }
  }
  subscript(_ offset: Int) -> UInt64 {
    get { number(offset, 8) }
    set { put(newValue, offset, 8) }
  }

  /// The message as bytes.
  var encoded: [UInt8] { Self.frame(id, command, flags, error, payload) }

  static func frame(_ id: UInt16, _ command: UInt16, _ flags: UInt32, _ error: UInt32, _ payload: [UInt8]) -> [UInt8] {
    func bytes(_ value: UInt64, _ count: Int) -> [UInt8] {
      (0..<count).map { UInt8(truncatingIfNeeded: value >> (8 * UInt64($0))) }
    }
    return bytes(UInt64(id), 2) + bytes(UInt64(command), 2) + bytes(UInt64(16 + payload.count), 4)
      + bytes(UInt64(flags), 4) + bytes(UInt64(error), 4) + payload
  }
}

/// What a fault does with a message.
enum Passage {
  case pass
  /// It goes no further; its sender gets this as the reply.
  case answer([UInt8])
  /// The same, with an error number.
  case refuse(UInt32)
  /// Its sender gets this reply, and the server the message some time later.
  case early([UInt8])
  case drop
  case close
  /// The server's process ends by a signal.
  case die
  static let done = Passage.answer([])
}

/// Makes a good server a bad one: sees each message that passes, in both directions, and may change it.
typealias MailFault = @Sendable (inout Letter) -> Passage

/// How the bytes themselves are taken badly.
enum Wire: Sendable {
  case well
  /// A header has to come at once.
  case wholeHeadersOnly
  /// It dies of a message that is cut off or nonsense.
  case fragile
  /// It takes any header for right, and answers it.
  case credulous
  /// It dies when a client goes whose device is at work.
  case clinging
}

/// What is remembered of a connection.
final class Mail: Sendable {
  struct State {
    var marks: Set<String> = []
    var counts: [String: Int] = [:]
    var requests: [UInt16: [UInt8]] = [:]
    /// Numbers of messages of the proxy's own, whose replies nobody waits for.
    var unwanted: Set<UInt16> = []
    /// A file that is kept, by its number.
    var kept: Int32?
  }
  let client: UnixSocket
  let server: UnixSocket
  let subject: FaultySubject
  let number: Int
  let state = Mutex(State())

  init(client: UnixSocket, server: UnixSocket, subject: FaultySubject, number: Int) {
    (self.client, self.server, self.subject, self.number) = (client, server, subject, number)
  }

  func has(_ mark: String) -> Bool { state.withLock { $0.marks.contains(mark) } }
  func mark(_ mark: String) { state.withLock { _ = $0.marks.insert(mark) } }
  /// How often this was counted before.
  func count(_ key: String) -> Int {
    state.withLock { state in
      defer { state.counts[key, default: 0] += 1 }
      return state.counts[key, default: 0]
    }
  }

  /// Says something to the server that the client does not know of.
  func tell(_ command: UInt16, _ payload: [UInt8], _ files: [Int32] = []) {
    state.withLock { _ = $0.unwanted.insert(0xfeed) }
    try? server.send(Letter.frame(0xfeed, command, 0, 0, payload).span, descriptors: files, timeout: .seconds(5))
  }

  /// Asks something of the client that the server does not know of.
  func ask(_ command: UInt16, _ payload: [UInt8]) {
    state.withLock { _ = $0.unwanted.insert(0xbeef) }
    try? client.send(Letter.frame(0xbeef, command, 0, 0, payload).span, timeout: .seconds(5))
  }

  func close() {
    client.shutdown()
    server.shutdown()
  }
}
