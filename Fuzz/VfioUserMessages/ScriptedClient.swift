import DMA
import HostIO

/// Sends what the input says, takes every reply, and answers what the server asks for, so that the server never has to
/// wait for it.
struct ScriptedClient: ~Copyable {
  private let socket: UnixSocket
  private let limit: Duration
  private let event: EventFD
  private let memory: MemoryFile
  private let mapping: HostMapping
  /// A socket to be passed, and its other end.
  private let channel: (UnixSocket, UnixSocket)?
  /// Whether the server gets what it asks for.
  private let grants: Bool
  /// What came and is not yet a whole message.
  private var heard: [UInt8] = []
  private var hasLast = false
  private var isClosed = false
  private var next: UInt16 = 0

  private enum Told: Error { case late }
  /// The number of the last command, which no other has.
  private static let last: UInt16 = 0xfffe
  private static let headerSize = 16

  /// Speaks through `socket`, passes `memory` and `event`, and waits no longer than `limit` for anything.
  init(
    _ socket: UnixSocket, memory: consuming MemoryFile, mapping: HostMapping, event: EventFD, grants: Bool,
    limit: Duration
  ) {
    self.socket = socket
    self.limit = limit
    self.event = event
    self.memory = memory
    self.mapping = mapping
    self.grants = grants
    channel = try? UnixSocket.pair()
  }

  /// Does the steps, then waits until the server has answered DEVICE_GET_INFO, which it always can, or has closed the
  /// connection.
  mutating func play(_ steps: [ClientScript.Step]) throws -> String? {
    do {
      for step in steps where !isClosed {
        switch step {
        case .command(let number, let flags, let payload, let passed, let count):
          next = next % 0xff00 + 1
          try send(
            Self.message(next, number, flags, payload)[...],
            [Int32](repeating: self.number(passed), count: passed == .nothing ? 0 : count))
        case .poke(let offset, let bytes):
          if !bytes.isEmpty, offset + bytes.count <= mapping.byteCount { _ = mapping.copy(bytes.span, to: offset) }
        case .resize(let size): try memory.resize(to: size)
        }
      }
      let end = ContinuousClock.now + limit
      try send(Self.message(Self.last, 4, 0, [16] + [UInt8](repeating: 0, count: 15))[...], [])
      while !isClosed, !hasLast {
        guard ContinuousClock.now < end else { throw Told.late }
        if try socket.waitReadable(timeout: .milliseconds(100)) { try hear() }
      }
      return nil
    } catch is Told {
      return "the server neither answers nor closes the connection"
    }
  }

  /// Sends bytes as they are, and waits until `isTaken`, or the connection is closed.
  mutating func stream(_ bytes: ArraySlice<UInt8>, until isTaken: () throws -> Bool) throws -> String? {
    do {
      var rest = bytes
      while !rest.isEmpty, !isClosed {
        try send(rest.prefix(4096), [])
        rest = rest.dropFirst(4096)
      }
      let end = ContinuousClock.now + limit
      while !isClosed, try !isTaken() {
        guard ContinuousClock.now < end else { throw Told.late }
        if try socket.waitReadable(timeout: .microseconds(100)) { try hear() }
      }
      return nil
    } catch is Told {
      return "the server does not read"
    }
  }

  private static func message(_ id: UInt16, _ command: UInt16, _ flags: UInt32, _ payload: [UInt8]) -> [UInt8] {
    ClientScript.bytes(UInt64(id), 2) + ClientScript.bytes(UInt64(command), 2)
      + ClientScript.bytes(UInt64(headerSize + payload.count), 4) + ClientScript.bytes(UInt64(flags), 4)
      + ClientScript.bytes(0, 4) + payload
  }

  private func number(_ passed: ClientScript.Passed) -> Int32 {
    switch passed {
    case .nothing: -1
    case .event: event.rawValue
    case .memory: memory.descriptor.rawValue
    case .channel: channel?.1.rawValue ?? event.rawValue
    }
  }

  /// Pieces of at most a page go into a stream socket whole or not at all, so a failed attempt can be made again.
  private mutating func send(_ bytes: ArraySlice<UInt8>, _ descriptors: [Int32]) throws {
    var descriptors = descriptors
    var rest = bytes
    let end = ContinuousClock.now + limit
    while !rest.isEmpty, !isClosed {
      let piece = Array(rest.prefix(4096))
      do {
        try socket.send(piece.span, descriptors: descriptors, timeout: .milliseconds(1))
        rest = rest.dropFirst(piece.count)
        descriptors = []
      } catch {
        switch error.errno {
        case .timedOut: guard ContinuousClock.now < end else { throw Told.late }
        case .brokenPipe, .connectionReset: isClosed = true
        default: throw error
        }
      }
      // A question is answered between two messages, and not in the middle of one.
      if rest.isEmpty { try hear() } else { try take() }
    }
  }

  private mutating func hear() throws {
    try take()
    var answers: [[UInt8]] = []
    var at = 0
    while heard.count - at >= Self.headerSize {
      let size = max(Self.headerSize, Int(word(at + 4)))
      guard heard.count - at >= size else { break }
      if word(at + 8) & 0xf == 0 {
        answers.append(answer(at, size))
      } else if word(at) & 0xffff == UInt32(Self.last) {
        hasLast = true
      }
      at += size
    }
    heard.removeFirst(at)
    for answer in answers { try send(answer[...], []) }
  }

  /// The reply to a question of the server's: zeroes, or no.
  private func answer(_ at: Int, _ size: Int) -> [UInt8] {
    let command = word(at) >> 16
    let payload = Array(heard[(at + Self.headerSize)..<(at + size)])
    let count = payload.count >= 16 ? Int(word(at + Self.headerSize + 8)) : 0
    let isRead = command == 11
    guard grants, payload.count >= 16, !isRead || count <= 1 << 20 else {
      return ClientScript.bytes(UInt64(word(at)), 4) + ClientScript.bytes(16, 4) + ClientScript.bytes(0x21, 4)
        + ClientScript.bytes(14, 4)
    }
    let data = Array(payload.prefix(16)) + [UInt8](repeating: 0, count: isRead ? count : 0)
    return Self.message(UInt16(word(at) & 0xffff), UInt16(command), 1, data)
  }

  private func word(_ at: Int) -> UInt32 { (0..<4).reduce(0) { $0 | UInt32(heard[at + $1]) << (8 * UInt32($1)) } }

  private mutating func take() throws {
    var descriptors = FileDescriptorList()
    var room = [UInt8](repeating: 0, count: 65536)
    while !isClosed {
      var span = room.mutableSpan
      do {
        switch try socket.receive(into: &span, descriptors: &descriptors) {
        case .bytes(let count): heard += room.prefix(count)
        case .nothingYet: return
        case .closed: isClosed = true
        }
      } catch {
        // A server that goes with bytes of ours unread resets the connection.
        guard error.errno == .connectionReset else { throw error }
        isClosed = true
      }
    }
  }
}
