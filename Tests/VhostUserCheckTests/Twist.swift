import HostIO
import VhostUser
import VhostUserCheck

/// What a twist does with a message.
enum Passage {
  case pass
  /// It goes no further; the front-end gets this as the answer, or nothing.
  case swallow(answer: [UInt8]?)
}

/// Makes a good back-end a bad one: looks at each message that passes, on either way, and may change it.
typealias Twist = @Sendable (_ request: UInt32, _ payload: inout [UInt8], _ fromFrontend: Bool) -> Passage

/// A back-end behind somebody who falsifies its messages.
final class TwistedSubject: CheckSubject, Sendable {
  private let path: String
  private let twist: Twist
  private let doublesMisses: Bool

  init(_ path: String, doublesMisses: Bool = false, _ twist: @escaping Twist = { _, _, _ in .pass }) {
    self.path = path
    self.twist = twist
    self.doublesMisses = doublesMisses
  }

  var life: BackendLife { .unknown }
  func renew() -> Bool { false }

  func connect(timeout: Duration) throws(HostError) -> UnixSocket {
    let (near, far) = try UnixSocket.pair()
    let server = try UnixSocket.connect(to: path, timeout: timeout)
    // A thread each way: nothing is ever waited for while the other way stands still.
    try start { [twist] subject in
      Self.relay(far, server) { request, flags, payload, files in
        var payload = payload
        switch twist(request, &payload, true) {
        case .pass: break
        case .swallow(let answer):
          if let answer { try? far.send(Self.frame(request, 5, answer).span, timeout: .seconds(5)) }
          return
        }
        var passed = files.rawValues
        var mine: UnixSocket?
        if request == FrontendRequest.Kind.setBackendRequestDescriptor.rawValue, subject.doublesMisses {
          mine = subject.doubleMisses(&files)
          if let mine { passed = [mine.rawValue] }
        }
        try? server.send(Self.frame(request, flags, payload).span, descriptors: passed, timeout: .seconds(5))
        withExtendedLifetime(mine) {}
      }
    }
    try start { [twist] _ in
      Self.relay(server, far) { request, flags, payload, files in
        var payload = payload
        guard case .pass = twist(request, &payload, false) else { return }
        try? far.send(Self.frame(request, flags, payload).span, descriptors: files.rawValues, timeout: .seconds(5))
      }
    }
    return near
  }

  private func start(_ body: @escaping @Sendable (TwistedSubject) -> Void) throws(HostError) {
    // Ends with its connection.
    _ = try WorkerThread(name: "twist") { body(self) }
  }

  /// Puts itself into the back-end's channel: every miss goes on twice, its answer comes back once. Returns the end for the
  /// back-end.
  private func doubleMisses(_ files: inout FileDescriptorList) -> UnixSocket? {
    guard let file = files.takeFirst(), let front = try? UnixSocket(adopting: file), let (ours, theirs) = try? UnixSocket.pair() else { return nil }
    try? start { _ in
      Self.relay(ours, front) { request, flags, payload, _ in
        let message = Self.frame(request, flags, payload)
        try? front.send(message.span, timeout: .seconds(5))
        guard payload.count > 25, payload[25] == IOTLBMessage.Kind.miss.rawValue else { return }
        try? front.send(message.span, timeout: .seconds(5))
      }
    }
    try? start { _ in
      var isSecond = false
      Self.relay(front, ours) { request, flags, payload, _ in
        // Answers come in pairs.
        defer { isSecond.toggle() }
        if !isSecond { try? ours.send(Self.frame(request, flags, payload).span, timeout: .seconds(5)) }
      }
    }
    return theirs
  }

  static func frame(_ request: UInt32, _ flags: UInt32, _ payload: [UInt8]) -> [UInt8] {
    MessageHeader(request: request, flags: flags, size: UInt32(payload.count)).encoded + payload
  }

  /// Takes messages from `source` until either socket ends, and then ends both.
  private static func relay(
    _ source: UnixSocket, _ sink: UnixSocket, _ body: (UInt32, UInt32, [UInt8], inout FileDescriptorList) -> Void
  ) {
    while true {
      var files = FileDescriptorList()
      guard let head = take(source, MessageHeader.byteCount, &files), let header = try? MessageHeader(decoding: head),
        let payload = take(source, Int(header.size), &files)
      else { break }
      body(header.request, header.flags, payload, &files)
    }
    source.shutdown()
    sink.shutdown()
  }

  private static func take(_ socket: UnixSocket, _ count: Int, _ files: inout FileDescriptorList) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    guard count > 0 else { return bytes }
    var span = bytes.mutableSpan
    guard (try? socket.receiveAll(into: &span, descriptors: &files)) == true else { return nil }
    return bytes
  }
}
