import DMA
import Examination
import HostIO
import Synchronization

/// A server behind a proxy that falsifies its messages.
final class FaultySubject: CheckSubject, Sendable {
  private let path: String
  private let wire: Wire
  private let fault: MailFault
  private let dead = Atomic<Bool>(false)
  private let open = Mutex<[Mail]>([])
  private let connections = Atomic<Int>(0)
  /// What faults remember beyond a connection.
  let memory = Mutex<[UInt64: UInt64]>([:])
  /// Files that are never closed while this lives.
  let files = Mutex(FileDescriptorList())

  init(_ path: String, wire: Wire = .well, _ fault: @escaping MailFault = { _ in .pass }) {
    (self.path, self.wire, self.fault) = (path, wire, fault)
  }

  var life: BackendLife { dead.load(ordering: .acquiring) ? .killed(11) : .running }
  func renew() -> Bool {
    dead.store(false, ordering: .releasing)
    return true
  }

  /// The server's process ends by a signal, as far as a peer can see.
  func die() {
    dead.store(true, ordering: .releasing)
    closeAll()
  }

  func closeAll() { for mail in open.withLock({ $0 }) { mail.close() } }

  /// Keeps a copy of a file open.
  func keep(_ file: Int32) -> Int32? {
    files.withLock { files in
      guard let copy = try? FileDescriptor.duplicating(file) else { return nil }
      let number = copy.rawValue
      files.append(copy)
      return number
    }
  }

  func connect(timeout: Duration) throws(HostError) -> UnixSocket {
    if dead.load(ordering: .acquiring) { throw HostError("connect", errno: .connectionRefused) }
    let (near, far) = try UnixSocket.pair()
    let server = try UnixSocket.connect(to: path, timeout: timeout)
    let number = connections.wrappingAdd(1, ordering: .relaxed).newValue
    let mail = Mail(client: far, server: server, subject: self, number: number)
    open.withLock { $0.append(mail) }
    // A thread each way: nothing is ever waited for while the other way stands still.
    _ = try WorkerThread(name: "fault") { [self] in
      relay(far, server, mail, fromClient: true)
      if wire == .clinging, mail.has("at work") { die() }
      open.withLock { $0.removeAll { $0 === mail } }
    }
    _ = try WorkerThread(name: "fault") { [self] in relay(server, far, mail, fromClient: false) }
    return near
  }

  /// Whether a connection is open besides this one.
  func others(_ mail: Mail) -> [Mail] { open.withLock { $0.filter { $0 !== mail } } }

  /// Takes messages from `source` until either socket ends, and then ends both.
  private func relay(_ source: UnixSocket, _ sink: UnixSocket, _ mail: Mail, fromClient: Bool) {
    defer { mail.close() }
    while true {
      var files = FileDescriptorList()
      guard let head = take(source, 16, &files, fromClient, atOnce: wire == .wholeHeadersOnly) else { return }
      func half(_ at: Int) -> UInt32 { head[at..<at + 4].reversed().reduce(0) { $0 << 8 | UInt32($1) } }
      let (size, flags) = (half(4), half(8))
      let (id, command) = (UInt16(truncatingIfNeeded: half(0)), UInt16(truncatingIfNeeded: half(0) >> 16))
      guard size >= 16, size <= 2 << 20 else {
        // The server itself is to judge.
        if wire == .fragile, fromClient { return die() }
        if wire == .credulous, fromClient {
          try? source.send(Letter.frame(id, command, 1, 0, [UInt8](repeating: 0, count: 16)).span, timeout: .seconds(5))
          continue
        }
        try? sink.send(head.span, timeout: .seconds(5))
        while take(source, 1, &files, false) != nil {}
        return
      }
      guard let payload = take(source, Int(size) - 16, &files, fromClient) else { return }
      var letter = Letter(
        id: id, command: command, flags: flags, error: half(12), payload: payload, files: files.rawValues,
        fromClient: fromClient, mail: mail)
      if fromClient {
        if letter.isReply, mail.state.withLock({ $0.unwanted.remove(id) != nil }) { continue }
        mail.state.withLock { $0.requests[id] = payload }
        if command == 10, letter.half(8) == 0, letter[0] > 0x1000 { mail.mark("at work") }
      } else if letter.isReply, mail.state.withLock({ $0.unwanted.remove(id) != nil }) {
        continue
      }
      pass(&letter, from: source, to: sink)
    }
  }

  private func pass(_ letter: inout Letter, from source: UnixSocket, to sink: UnixSocket) {
    func answer(_ payload: [UInt8], _ error: UInt32) {
      guard letter.flags & 0x10 == 0 else { return }
      let flags: UInt32 = error == 0 ? 1 : 0x21
      let bytes = Letter.frame(letter.id, letter.command, flags, error, payload)
      try? source.send(bytes.span, timeout: .seconds(5))
    }
    switch fault(&letter) {
    case .pass: try? sink.send(letter.encoded.span, descriptors: letter.files, timeout: .seconds(5))
    case .answer(let payload): answer(payload, 0)
    case .refuse(let error): answer([], error)
    case .early(let payload):
      answer(payload, 0)
      pause(.milliseconds(3))
      letter.mail.state.withLock { [id = letter.id] in _ = $0.unwanted.insert(id) }
      try? sink.send(letter.encoded.span, descriptors: letter.files, timeout: .seconds(5))
    case .drop: break
    case .close: letter.mail.close()
    case .die: die()
    }
  }

  private func take(
    _ socket: UnixSocket, _ count: Int, _ files: inout FileDescriptorList, _ fromClient: Bool, atOnce: Bool = false
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
      guard try socket.receiveAll(into: &span, descriptors: &files) else {
        // The end of a connection is no fault where a message begins.
        if wire == .fragile, fromClient, count != 16 { die() }
        return nil
      }
    } catch {
      if wire == .fragile, fromClient { die() }
      return nil
    }
    return bytes
  }
}

/// Waits without anything to wait for.
func pause(_ time: Duration) {
  guard let nothing = try? EventFD() else { return }
  _ = try? nothing.wait(timeout: time)
}
