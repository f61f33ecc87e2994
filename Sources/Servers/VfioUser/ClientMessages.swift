internal import DMA
internal import HostIO
internal import SocketMessages
internal import Synchronization

/// DMA_READ and DMA_WRITE: the client's memory where no descriptor came with it. The client does each access, and
/// checks it against its own IOMMU.
///
/// Queue threads ask and wait; the thread that receives messages gives them the answers. A client may hold still until
/// it has its own answer (QEMU does, under its global lock), and that answer may have to wait for a queue thread: then
/// the queue's accesses are given up, so that neither waits for the other.
final class ClientMessages: RemoteMemory {
  /// The accesses of one call that are under way.
  fileprivate final class Call: Sendable {
    struct State {
      var results: [[UInt8]]
      var left: Int
      var fault: DMAFault?
    }
    let accesses: [RemoteAccess]
    let state: Mutex<State>
    let done: EventFD

    init(_ accesses: [RemoteAccess], _ done: EventFD) {
      self.accesses = accesses
      self.done = done
      state = Mutex(State(results: Array(repeating: [], count: accesses.count), left: accesses.count))
    }

    func end(_ index: Int, _ result: Result<[UInt8], DMAFault>) {
      let isOver = state.withLock { state in
        switch result {
        case .success(let bytes): state.results[index] = bytes
        case .failure(let fault): if state.fault == nil { state.fault = fault }
        }
        state.left -= 1
        return state.left == 0
      }
      if isOver { done.signal() }
    }
  }
  fileprivate struct Asked {
    var call: Call
    var index: Int
  }
  fileprivate struct State {
    var socket: UnixSocket?
    var limit = VfioHeader.transferLimit
    var asked: [UInt16: Asked] = [:]
    /// Given up, and their answers may come yet: the bytes of each.
    var abandoned: [UInt16: Int] = [:]
    /// Bytes of answers that may come.
    var expected = 0
    var next: UInt16 = 0
    /// Since when a command of the client's has been worked on.
    var busySince: ContinuousClock.Instant?
    var counts: (accesses: UInt64, refused: UInt64) = (0, 0)
    /// Eventfds for calls to wait with.
    var idle: [EventFD] = []
  }
  private let state = Mutex(State())
  /// Held while a message is sent, which goes in one piece, and while mappings are taken away.
  private let sending = Mutex(())
  /// Whether all of these bytes may be accessed so.
  private let isMapped: @Sendable (DMAAddress, Int, DMAAccess) -> DMAFault?
  let copyBudget = CopyBudget(256 << 20)
  /// Signalled when fewer answers are to come.
  private let room: EventFD
  /// Bytes of answers that may be under way at a time, and of one. A client must never find its socket full: QEMU 11.1
  /// waits for room in a nested event loop then, from which it sends other messages in the middle of the one begun.
  /// Linux gives a socket room for 208 KiB by default.
  static let window = 64 << 10
  static let mostOfRead = 32 << 10
  /// How long the client may take for its answers.
  static let patience = Duration.seconds(5)
  /// How long a command of the client's may wait for a queue that waits for the client.
  static let grace = Duration.milliseconds(50)

  init(_ isMapped: @escaping @Sendable (DMAAddress, Int, DMAAccess) -> DMAFault?) throws(HostError) {
    self.isMapped = isMapped
    room = try EventFD()
  }

  /// Messages so far, and those that did not bring what was asked for.
  var counts: (accesses: UInt64, refused: UInt64) { state.withLock { $0.counts } }

  // MARK: The session

  /// Messages go to this client from now on.
  func attach(_ socket: UnixSocket) {
    state.withLock { state in
      state.socket = socket
      (state.abandoned, state.expected) = ([:], 0)
    }
  }

  /// The most data that the client takes in a message.
  func setTransferLimit(_ byteCount: Int) {
    state.withLock { $0.limit = min(max(byteCount, 4096), VfioHeader.transferLimit) }
  }

  /// The client has gone, or goes: whatever is asked for is refused.
  func detach() {
    state.withLock { state in
      state.socket = nil
      (state.abandoned, state.expected) = ([:], 0)
      state.limit = VfioHeader.transferLimit
    }
    giveUp { _ in true }
  }

  /// Sends an answer of the session's.
  func send(
    _ bytes: [UInt8], descriptors: [Int32], timeout: Duration, cancel: EventFD
  ) throws(HostError) {
    guard let socket = state.withLock({ $0.socket }) else { return }
    try sending.withLock { _ throws(HostError) in
      try socket.send(bytes.span, descriptors: descriptors, timeout: timeout, cancel: cancel)
    }
  }

  /// Runs `body` while no access can begin: what it takes away is asked for no more when it returns.
  func excluding<R, E: Error>(_ body: () throws(E) -> R) throws(E) -> R {
    try sending.withLock { _ throws(E) in try body() }
  }

  /// A command of the client's is worked on, or none is.
  func setBusy(_ isBusy: Bool) { state.withLock { $0.busySince = isBusy ? .now : nil } }

  /// Takes an answer. False if nothing like it was asked for.
  func take(_ header: VfioHeader, _ payload: [UInt8]) -> Bool {
    let (asked, isLate): (Asked?, Bool) = state.withLock { state in
      if let asked = state.asked.removeValue(forKey: header.id) {
        state.expected -= asked.call.accesses[asked.index].answerBytes
        return (asked, false)
      }
      let late = state.abandoned.removeValue(forKey: header.id)
      state.expected -= late ?? 0
      return (nil, late != nil)
    }
    room.signal()
    guard let asked else { return isLate }
    let access = asked.call.accesses[asked.index]
    let fault = access.fault(header.error == UInt32(Errno.permissionDenied.rawValue) ? .permission : .unmapped)
    var reader = PayloadReader(payload, of: "an answer")
    switch access {
    case .read(let address, let count) where header.command == VfioCommand.readDMA.rawValue:
      guard !header.hasFailed else { break }
      guard (try? reader.take(UInt64.self)) == address.rawValue, (try? reader.take(UInt64.self)) == UInt64(count),
        reader.remaining == count, let bytes = try? reader.take(count: count)
      else {
        asked.call.end(asked.index, .failure(fault))
        return false
      }
      asked.call.end(asked.index, .success(bytes))
      return true
    case .write(let address, let bytes) where header.command == VfioCommand.writeDMA.rawValue:
      guard !header.hasFailed else { break }
      // The count has four bytes in the document and eight in QEMU; the lower ones are enough.
      guard (try? reader.take(UInt64.self)) == address.rawValue, (try? reader.take(UInt32.self)) == UInt32(bytes.count)
      else {
        asked.call.end(asked.index, .failure(fault))
        return false
      }
      asked.call.end(asked.index, .success([]))
      return true
    default:
      asked.call.end(asked.index, .failure(fault))
      return false
    }
    asked.call.end(asked.index, .failure(fault))
    return true
  }

  // MARK: Queues

  func perform(_ accesses: [RemoteAccess]) throws(DMAFault) -> [[UInt8]] {
    guard let first = accesses.first else { return [] }
    let limit = state.withLock { $0.limit }
    let pieces = accesses.map { $0.pieces(of: limit) }
    let call: Call
    do throws(HostError) {
      let idle = state.withLock { $0.idle.popLast() }
      let event: EventFD
      if let idle { event = idle } else { event = try EventFD() }
      call = Call(pieces.flatMap { $0 }, event)
    } catch {
      throw first.fault(.exhausted)
    }
    defer { state.withLock { if $0.idle.count < 64 { $0.idle.append(call.done) } } }
    begin(call)
    wait(for: call)
    _ = try? call.done.drain()
    let (results, fault) = call.state.withLock { ($0.results, $0.fault) }
    state.withLock { state in
      state.counts.accesses &+= UInt64(call.accesses.count)
      if fault != nil { state.counts.refused &+= 1 }
    }
    if let fault { throw fault }
    var at = 0
    return pieces.map { pieces in
      defer { at += pieces.count }
      return pieces.count == 1 ? results[at] : Array(results[at..<at + pieces.count].joined())
    }
  }

  private func begin(_ call: Call) {
    for (index, access) in call.accesses.enumerated() {
      guard let trouble = begin(access, Asked(call: call, index: index)) else { continue }
      let first = trouble.hasEnded ? index + 1 : index
      for rest in first..<call.accesses.count { call.end(rest, .failure(trouble.fault)) }
      return
    }
  }

  /// Sends one access; why it is not under way, and whether it has been ended already.
  private func begin(_ access: RemoteAccess, _ asked: Asked) -> (fault: DMAFault, hasEnded: Bool)? {
    guard waitForRoom(access.answerBytes) else { return (access.fault(.stopped), false) }
    return sending.withLock { _ in
      if let fault = isMapped(access.address, access.count, access.kind) { return (fault, false) }
      let (socket, id): (UnixSocket?, UInt16?) = state.withLock { state in
        guard let socket = state.socket else { return (nil, nil) }
        let id = state.number(for: asked)
        if id != nil { state.expected += access.answerBytes }
        return (socket, id)
      }
      guard let socket, let id else { return (access.fault(.stopped), false) }
      do throws(HostError) {
        try socket.send(access.message(id).span, timeout: Self.patience)
        return nil
      } catch {
        // Half a message may have gone: this client is lost, and its session ends. If the number is not on the list any
        // more, because an answer came or the client has gone, the access has been ended.
        socket.shutdown()
        let hasEnded = state.withLock { state in
          guard state.asked.removeValue(forKey: id) != nil else { return true }
          state.expected -= access.answerBytes
          return false
        }
        return (access.fault(.stopped), hasEnded)
      }
    }
  }

  /// Waits until an answer of so many bytes may be asked for; false: not in time. Other queues may ask in between, which
  /// the room of a socket bears.
  private func waitForRoom(_ count: Int) -> Bool {
    let end = ContinuousClock.now + Self.patience
    while state.withLock({ $0.expected > 0 && $0.expected + count > Self.window }) {
      if (try? room.wait(timeout: .milliseconds(10))) == true { _ = try? room.drain() }
      if isLate(end) { return false }
    }
    return true
  }

  private func wait(for call: Call) {
    let end = ContinuousClock.now + Self.patience
    while true {
      // Short, because nothing signals that a command of the client's has been waiting for long.
      if (try? call.done.wait(timeout: .milliseconds(10))) ?? true, call.state.withLock({ $0.left <= 0 }) { return }
      if isLate(end) { giveUp { $0 === call } }
    }
  }

  /// Whether nothing is to be waited for any longer.
  private func isLate(_ end: ContinuousClock.Instant) -> Bool {
    let now = ContinuousClock.now
    return now > end || state.withLock { $0.busySince.map { now - $0 > Self.grace } ?? ($0.socket == nil) }
  }

  private func giveUp(_ isMeant: (Call) -> Bool) {
    let asked = state.withLock { state in
      let meant = state.asked.filter { isMeant($0.value.call) }
      for id in meant.keys { state.asked[id] = nil }
      for (id, one) in meant where state.socket != nil {
        state.abandoned[id] = one.call.accesses[one.index].answerBytes
      }
      return meant.values
    }
    for one in asked { one.call.end(one.index, .failure(one.call.accesses[one.index].fault(.stopped))) }
  }
}

extension ClientMessages.State {
  /// A number for a message, which no other has that is not answered; nil: there is none.
  fileprivate mutating func number(for asked: ClientMessages.Asked) -> UInt16? {
    for _ in 0...UInt16.max {
      next &+= 1
      if self.asked[next] == nil, abandoned[next] == nil {
        self.asked[next] = asked
        return next
      }
    }
    return nil
  }
}

extension RemoteAccess {
  fileprivate var address: DMAAddress {
    switch self {
    case .read(let address, _), .write(let address, _): address
    }
  }
  fileprivate var count: Int {
    switch self {
    case .read(_, let count): count
    case .write(_, let bytes): bytes.count
    }
  }
  fileprivate var kind: DMAAccess {
    switch self {
    case .read: .read
    case .write: .write
    }
  }

  fileprivate func fault(_ reason: DMAFault.Reason) -> DMAFault {
    DMAFault(address: address, access: kind, reason: reason)
  }

  /// Bytes of data that the answer brings.
  fileprivate var answerBytes: Int { kind == .read ? count : 0 }

  /// In messages of `limit` bytes of data at most.
  fileprivate func pieces(of limit: Int) -> [RemoteAccess] {
    let limit = kind == .read ? min(limit, ClientMessages.mostOfRead) : limit
    guard count > limit else { return [self] }
    return stride(from: 0, to: count, by: limit).map { at in
      let n = min(limit, count - at)
      let address = DMAAddress(address.rawValue &+ UInt64(at))
      switch self {
      case .read: return .read(address, count: n)
      case .write(_, let bytes): return .write(address, Array(bytes[at..<at + n]))
      }
    }
  }

  /// Address and count, and a write's bytes.
  fileprivate func message(_ id: UInt16) -> [UInt8] {
    var writer = PayloadWriter()
    writer.put(address.rawValue)
    writer.put(UInt64(count))
    switch self {
    case .read: return VfioHeader.frame(id: id, command: VfioCommand.readDMA.rawValue, writer.bytes)
    case .write(_, let bytes):
      writer.put(bytes)
      return VfioHeader.frame(id: id, command: VfioCommand.writeDMA.rawValue, writer.bytes)
    }
  }
}
