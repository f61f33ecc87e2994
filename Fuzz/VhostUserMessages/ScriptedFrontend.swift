import DMA
import HostIO

/// Sends what the input says, and takes every answer, so that the back-end never has to wait for it.
struct ScriptedFrontend: ~Copyable {
  private let socket: UnixSocket
  private let limit: Duration
  private let event: EventFD
  private let memory: MemoryFile
  private let mapping: HostMapping
  /// The end of the back-end's channel that we keep, and the one that is passed.
  private let channel: (ours: UnixSocket, theirs: UnixSocket)
  /// The device's state: a socket with what there is to read, and no peer at the other end. CHECK_DEVICE_STATE waits
  /// ten seconds for a front-end that keeps its end open, which is as it should be and too slow here.
  private var state: UnixSocket
  /// What came and is not yet a whole answer.
  private var heard: [UInt8] = []
  /// Answers to the request that is sent last.
  private var lastAnswers = 0
  private var isClosed = false

  private enum Told: Error { case late }
  private static let setDeviceState: UInt8 = 42

  /// Speaks through `socket`, passes `memory` and one end of `channel`, and waits no longer than `limit` for anything.
  init(
    _ socket: UnixSocket, memory: consuming MemoryFile, mapping: HostMapping, event: EventFD,
    channel: (ours: UnixSocket, theirs: UnixSocket), limit: Duration
  ) throws {
    self.socket = socket
    self.limit = limit
    self.event = event
    self.memory = memory
    self.mapping = mapping
    self.channel = channel
    state = channel.theirs
    try setState([])
  }

  /// Does the steps, then waits until the back-end has answered `last`, which it always can, or has closed the
  /// connection.
  mutating func play(_ steps: [MessageScript.Step], last: UInt8) throws -> String? {
    var asked = 1
    do {
      for step in steps where !isClosed {
        switch step {
        case .message(let request, let bytes, let passed, let count):
          if request == last { asked += 1 }
          let one = request == Self.setDeviceState && passed != .memory ? state.rawValue : number(passed)
          try send(bytes[...], [Int32](repeating: one, count: passed == .nothing ? 0 : count), last)
        case .poke(let offset, let bytes):
          if !bytes.isEmpty, offset + bytes.count <= mapping.byteCount { _ = mapping.copy(bytes.span, to: offset) }
        case .kick: event.signal()
        case .resize(let size): try memory.resize(to: size)
        case .state(let bytes): try setState(bytes)
        // It need not be read, and a full socket is for the back-end to handle.
        case .answer(let bytes): if !bytes.isEmpty { try? channel.ours.send(bytes.span, timeout: .zero) }
        }
        try hearChannel()
      }
      let end = ContinuousClock.now + limit
      try send((MessageScript.word(UInt32(last)) + MessageScript.word(1) + MessageScript.word(0))[...], [], last)
      while !isClosed, lastAnswers < asked {
        guard ContinuousClock.now < end else { throw Told.late }
        if try socket.waitReadable(timeout: .milliseconds(100)) { try hear(last) }
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
        try send(rest.prefix(4096), [], 0)
        rest = rest.dropFirst(4096)
      }
      let end = ContinuousClock.now + limit
      while !isClosed, try !isTaken() {
        guard ContinuousClock.now < end else { throw Told.late }
        if try socket.waitReadable(timeout: .microseconds(100)) { try hear(0) }
      }
      return nil
    } catch is Told {
      return "the server does not read"
    }
  }

  private mutating func setState(_ bytes: [UInt8]) throws {
    let (writer, reader) = try UnixSocket.pair()
    if !bytes.isEmpty { try? writer.send(bytes.span, timeout: .zero) }
    state = reader
  }

  private func number(_ passed: MessageScript.Passed) -> Int32 {
    switch passed {
    case .nothing: -1
    case .event: event.rawValue
    case .memory: memory.descriptor.rawValue
    case .channel: channel.theirs.rawValue
    }
  }

  /// Pieces of at most a page go into a stream socket whole or not at all, so a failed attempt can be made again.
  private mutating func send(_ bytes: ArraySlice<UInt8>, _ descriptors: [Int32], _ last: UInt8) throws {
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
      try hear(last)
    }
  }

  private mutating func hear(_ last: UInt8) throws {
    var descriptors = FileDescriptorList()
    var room = [UInt8](repeating: 0, count: 4096)
    while !isClosed {
      var span = room.mutableSpan
      do {
        switch try socket.receive(into: &span, descriptors: &descriptors) {
        case .bytes(let count): heard += room.prefix(count)
        case .nothingYet:
          countAnswers(last)
          return
        case .closed: isClosed = true
        }
      } catch {
        // A back-end that goes with bytes of ours unread resets the connection.
        guard error.errno == .connectionReset else { throw error }
        isClosed = true
      }
    }
  }

  private mutating func countAnswers(_ last: UInt8) {
    var at = 0
    while heard.count - at >= 12 {
      let size = Int(heard[at + 8]) | Int(heard[at + 9]) << 8
      guard heard.count - at >= 12 + size else { break }
      if heard[at] == last { lastAnswers += 1 }
      at += 12 + size
    }
    heard.removeFirst(at)
  }

  /// Takes the back-end's questions. The input has the answers.
  private func hearChannel() throws {
    var descriptors = FileDescriptorList()
    var room = [UInt8](repeating: 0, count: 4096)
    while true {
      var span = room.mutableSpan
      // The back-end shuts nothing down here: the other end is open as long as we are.
      guard case .bytes = try channel.ours.receive(into: &span, descriptors: &descriptors) else { return }
    }
  }
}
