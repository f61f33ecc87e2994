import Examination
import HostIO
import Synchronization
import VhostUser
import VhostUserCheck

/// A message that passes between a front-end and a back-end.
struct InterceptedMessage {
  var request: UInt32
  var flags: UInt32
  var payload: [UInt8]
  /// How many descriptors come along.
  var descriptors: Int
  var fromFrontend: Bool
  /// How many of this kind went the same way on this connection before.
  var earlier: Int
  /// The connection it belongs to.
  let connection: Correspondence

  /// From the front-end, and of this kind.
  func asks(_ kind: FrontendRequest.Kind) -> Bool { fromFrontend && request == kind.rawValue }
  /// The back-end's answer to this kind.
  func answers(_ kind: FrontendRequest.Kind) -> Bool { !fromFrontend && request == kind.rawValue }
  /// The front-end's IOTLB message of this kind.
  func translates(_ kind: IOTLBMessage.Kind) -> Bool {
    asks(.iotlb) && payload.count >= 26 && payload[25] == kind.rawValue
  }

  /// Its sender waits for an answer.
  var wantsAnswer: Bool { flags & MessageHeader.needReply != 0 }

  /// 64 bits of the payload; 0 where there are none.
  subscript(_ offset: Int) -> UInt64 {
    get {
      offset + 8 <= payload.count ? (0..<8).reduce(0) { $0 | UInt64(payload[offset + $1]) << (8 * UInt64($1)) } : 0
    }
    set {
      if offset + 8 <= payload.count {
        payload.replaceSubrange(offset..<offset + 8, with: InterceptedMessage.bytes(newValue))
      }
    }
  }
  /// 32 bits of the payload.
  func half(_ offset: Int) -> UInt32 {
    offset + 4 <= payload.count ? (0..<4).reduce(0) { $0 | UInt32(payload[offset + $1]) << (8 * UInt32($1)) } : 0
  }

  static func bytes(_ word: UInt64) -> [UInt8] { (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * UInt64($0))) } }
}

/// What a twist does with a message.
enum Passage {
  case pass
  /// It goes no further; its sender gets this as the answer, or nothing.
  case swallow(answer: [UInt8]?)
  /// It goes twice; the second answer is dropped.
  case twice
  /// The back-end ends the connection.
  case close
  /// The back-end's process ends by a signal.
  case die
  static let success = Passage.swallow(answer: InterceptedMessage.bytes(0))
}

/// Makes a good back-end a bad one: sees each message that passes, in both directions, and may change it.
typealias MessageFault = @Sendable (inout InterceptedMessage) -> Passage

/// How the bytes themselves are taken badly.
enum Wire: Sendable {
  case well
  /// A header has to come at once.
  case wholeHeadersOnly
  /// It waits for as many bytes as a header promises.
  case patient
  /// It dies when a connection ends in the middle of a message, or brings nonsense.
  case fragile
  /// It dies when a front-end goes whose rings run.
  case clinging
}

/// What is remembered of one connection, and of all.
final class Correspondence: Sendable {
  let server: UnixSocket
  let client: UnixSocket
  let subject: TwistedSubject
  /// Marks that twists leave for themselves.
  let marks = Mutex<Set<String>>([])
  private let numbers = Mutex<[UInt64: Int]>([:])
  /// Misses without an answer that they asked for.
  let openMisses = Atomic<Int>(0)
  /// Answers to messages of our own, which the front-end must not see.
  let unwanted = Mutex<[UInt32: Int]>([:])

  init(server: UnixSocket, client: UnixSocket, subject: TwistedSubject) {
    self.server = server
    self.client = client
    self.subject = subject
  }

  func has(_ mark: String) -> Bool { marks.withLock { $0.contains(mark) } }
  func mark(_ mark: String) { marks.withLock { _ = $0.insert(mark) } }

  func count(_ request: UInt32, _ fromFrontend: Bool) -> Int {
    numbers.withLock { numbers in
      let key = UInt64(request) << 1 | (fromFrontend ? 1 : 0)
      defer { numbers[key, default: 0] += 1 }
      return numbers[key, default: 0]
    }
  }

  /// Says something to the back-end that the front-end does not know of.
  func tell(_ message: FrontendRequest) {
    unwanted.withLock { $0[message.kind.rawValue, default: 0] += 1 }
    try? server.send(message.encoded(needsReply: true).span, timeout: .seconds(5))
  }

  func isUnwanted(_ request: UInt32) -> Bool {
    unwanted.withLock { unwanted in
      guard let count = unwanted[request], count > 0 else { return false }
      unwanted[request] = count - 1
      return true
    }
  }
}

/// A back-end behind a proxy that falsifies its messages.
final class TwistedSubject: CheckSubject, Sendable {
  private let path: String
  private let wire: Wire
  private let twist: MessageFault
  private let channel: MessageFault?
  private let injected: [IOTLBMessage]
  private let dead = Atomic<Bool>(false)
  private let open = Mutex<[Correspondence]>([])
  /// What twists remember beyond a connection.
  let memory = Mutex<[UInt64: UInt64]>([:])
  /// Called for each new connection.
  let onConnect = Mutex<(@Sendable () -> Void)?>(nil)

  /// - Parameters:
  ///   - channel: as `twist`, for the back-end's own channel.
  ///   - injected: messages that are put into that channel when it opens.
  init(
    _ path: String, wire: Wire = .well, channel: MessageFault? = nil, injected: [IOTLBMessage] = [],
    _ twist: @escaping MessageFault
  ) {
    self.path = path
    self.wire = wire
    self.twist = twist
    self.channel = channel
    self.injected = injected
  }

  var life: BackendLife { dead.load(ordering: .acquiring) ? .killed(11) : .running }
  func renew() -> Bool {
    dead.store(false, ordering: .releasing)
    return true
  }

  /// The back-end's process ends by a signal, as far as a peer can see.
  func die() {
    dead.store(true, ordering: .releasing)
    closeAll()
  }

  func closeAll() {
    for connection in open.withLock({ $0 }) {
      connection.client.shutdown()
      connection.server.shutdown()
    }
  }

  func connect(timeout: Duration) throws(HostError) -> UnixSocket {
    if dead.load(ordering: .acquiring) { throw HostError("connect", errno: .connectionRefused) }
    onConnect.withLock { $0 }?()
    let (near, far) = try UnixSocket.pair()
    let server = try UnixSocket.connect(to: path, timeout: timeout)
    let connection = Correspondence(server: server, client: far, subject: self)
    open.withLock { $0.append(connection) }
    // A thread each way: nothing is ever waited for while the other way stands still.
    _ = try WorkerThread(name: "twist") { [self] in
      relay(far, server, connection, fromFrontend: true) { letter, files in
        guard pass(&letter, from: far, twist) else { return }
        var passed = files.rawValues
        var mine: UnixSocket?
        if letter.asks(.setBackendRequestDescriptor), channel != nil || !injected.isEmpty {
          mine = interpose(&files, connection)
          if let mine { passed = [mine.rawValue] }
        }
        try? server.send(Self.frame(letter).span, descriptors: passed, timeout: .seconds(5))
        withExtendedLifetime(mine) {}
      }
      if wire == .clinging, connection.has("runs") { die() }
      open.withLock { $0.removeAll { $0 === connection } }
    }
    _ = try WorkerThread(name: "twist") { [self] in
      relay(server, far, connection, fromFrontend: false) { letter, files in
        if connection.isUnwanted(letter.request) { return }
        guard pass(&letter, from: server, twist) else { return }
        try? far.send(Self.frame(letter).span, descriptors: files.rawValues, timeout: .seconds(5))
      }
    }
    return near
  }

  /// Whether a message is forwarded after a twist; a twist that answers or closes is carried out here.
  private func pass(_ letter: inout InterceptedMessage, from source: UnixSocket, _ twist: MessageFault) -> Bool {
    if letter.asks(.setVringKick) { letter.connection.mark("runs") }
    if letter.asks(.getVringBase) { letter.connection.marks.withLock { _ = $0.remove("runs") } }
    switch twist(&letter) {
    case .pass, .twice: return true
    case .swallow(let answer):
      if let answer { try? source.send(Self.frame(letter.request, 5, answer).span, timeout: .seconds(5)) }
    case .close:
      letter.connection.client.shutdown()
      letter.connection.server.shutdown()
    case .die: die()
    }
    return false
  }

  /// Puts itself into the back-end's channel. Returns the end for the back-end.
  private func interpose(_ files: inout FileDescriptorList, _ connection: Correspondence) -> UnixSocket? {
    guard let file = files.takeFirst(), let front = try? UnixSocket(adopting: file),
      let (ours, theirs) = try? UnixSocket.pair()
    else { return nil }
    let channel = channel ?? { _ in .pass }
    for message in injected {
      var frame = FrontendRequest.iotlb(message).encoded()
      // On the channel it is request 1.
      frame[0] = 1
      try? front.send(frame.span, timeout: .seconds(5))
    }
    let drops = Mutex(0)
    let shared = Shared(drops)
    _ = try? WorkerThread(name: "twist") { [self] in
      relay(ours, front, connection, fromFrontend: false) { letter, _ in
        let passage = channel(&letter)
        // Of questions that come together only the last one has an answer.
        if letter.wantsAnswer, letter.payload.count > 25, letter.payload[25] == IOTLBMessage.Kind.miss.rawValue {
          connection.openMisses.add(1, ordering: .sequentiallyConsistent)
        }
        switch passage {
        case .pass: try? front.send(Self.frame(letter).span, timeout: .seconds(5))
        case .twice:
          if letter.wantsAnswer { shared.drops.withLock { $0 += 1 } }
          for _ in 0..<2 { try? front.send(Self.frame(letter).span, timeout: .seconds(5)) }
        case .swallow(let answer):
          if let answer, letter.wantsAnswer {
            try? ours.send(Self.frame(letter.request, 5, answer).span, timeout: .seconds(5))
          }
        case .close: connection.client.shutdown()
        case .die: die()
        }
      }
    }
    _ = try? WorkerThread(name: "twist") { [self] in
      relay(front, ours, connection, fromFrontend: true) { letter, _ in
        let isSecond = shared.drops.withLock { drops in
          defer { if drops > 0 { drops -= 1 } }
          return drops > 0
        }
        if isSecond { return }
        connection.openMisses.subtract(1, ordering: .sequentiallyConsistent)
        switch channel(&letter) {
        case .die: die()
        case .swallow: break
        default: try? ours.send(Self.frame(letter).span, timeout: .seconds(5))
        }
      }
    }
    return theirs
  }

  private final class Shared: Sendable {
    let drops: Mutex<Int>
    init(_ drops: consuming Mutex<Int>) { self.drops = drops }
  }

  static func frame(_ letter: InterceptedMessage) -> [UInt8] { frame(letter.request, letter.flags, letter.payload) }
  static func frame(_ request: UInt32, _ flags: UInt32, _ payload: [UInt8]) -> [UInt8] {
    MessageHeader(request: request, flags: flags, size: UInt32(payload.count)).encoded + payload
  }

  private static func half(_ bytes: [UInt8], _ offset: Int) -> UInt32 {
    bytes[offset..<offset + 4].reversed().reduce(0) { $0 << 8 | UInt32($1) }
  }

  /// Takes messages from `source` until either socket ends, and then ends both.
  private func relay(
    _ source: UnixSocket, _ sink: UnixSocket, _ connection: Correspondence, fromFrontend: Bool,
    _ body: (inout InterceptedMessage, inout FileDescriptorList) -> Void
  ) {
    defer {
      source.shutdown()
      sink.shutdown()
    }
    while true {
      var files = FileDescriptorList()
      var isWhole = true
      guard let head = take(source, MessageHeader.byteCount, &files, atOnce: wire == .wholeHeadersOnly, &isWhole) else {
        if wire == .fragile, fromFrontend, !isWhole { die() }
        return
      }
      // Of any version: a check that goes on with any version finds its flaw behind this.
      let header = MessageHeader(request: Self.half(head, 0), flags: Self.half(head, 4), size: Self.half(head, 8))
      guard header.size <= MessageHeader.payloadLimit else {
        // More than a message has: the back-end itself is to judge.
        if wire == .patient, fromFrontend {
          while take(source, 1, &files, &isWhole) != nil {}
          return
        }
        if wire == .fragile, fromFrontend { die() }
        try? sink.send(head.span, timeout: .seconds(5))
        while take(source, 1, &files, &isWhole) != nil {}
        return
      }
      guard let payload = take(source, Int(header.size), &files, &isWhole) else {
        if wire == .fragile, fromFrontend { die() }
        return
      }
      var letter = InterceptedMessage(
        request: header.request, flags: header.flags, payload: payload, descriptors: files.count,
        fromFrontend: fromFrontend, earlier: connection.count(header.request, fromFrontend), connection: connection)
      body(&letter, &files)
    }
  }

  private func take(
    _ socket: UnixSocket, _ count: Int, _ files: inout FileDescriptorList, atOnce: Bool = false, _ isWhole: inout Bool
  ) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    guard count > 0 else { return bytes }
    var span = bytes.mutableSpan
    if atOnce {
      guard (try? socket.waitReadable()) == true,
        case .bytes(count)? = try? socket.receive(into: &span, descriptors: &files)
      else { return nil }
      return bytes
    }
    do throws(HostError) {
      guard try socket.receiveAll(into: &span, descriptors: &files) else { return nil }
    } catch {
      isWhole = false
      return nil
    }
    return bytes
  }
}
