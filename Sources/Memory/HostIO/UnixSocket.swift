internal import CLinux
internal import Glibc

/// The process at the other end of a socket, as the kernel recorded it when the connection was made.
public struct PeerCredentials: Hashable, Sendable {
  /// Its process number; 0 if that is of another PID namespace.
  public let process: Int32
  /// Its effective user.
  public let user: UInt32
  /// Its effective group.
  public let group: UInt32
}

/// A connected Unix stream socket that carries bytes and descriptors.
///
/// Any thread may use it, but a message sent in parts by two threads at once would be mixed: senders take turns.
/// O_NONBLOCK of an inherited socket is left as it is; each call says by itself whether it waits.
public final class UnixSocket: Sendable {
  /// How a receive ended.
  public enum Received: Hashable, Sendable {
    /// This many bytes came, at least one.
    case bytes(Int)
    /// None is here yet.
    case nothingYet
    /// The peer will send no more.
    case closed
  }

  /// How a send ended that must not wait.
  public enum ImmediateSend: Hashable, Sendable {
    case sent
    /// The socket takes nothing now.
    case wouldBlock
  }

  /// Descriptors one message can carry (SCM_MAX_FD).
  public static var maxDescriptors: Int { Int(HOST_MAX_PASSED) }

  private let descriptor: FileDescriptor

  /// Takes over a connected socket. ENOTSOCK, EPROTOTYPE or EINVAL if it is none, or not a Unix stream socket, or
  /// listens.
  public init(adopting descriptor: consuming FileDescriptor) throws(HostError) {
    let raw = descriptor.rawValue
    guard try check(host_socket_is_unix_stream(raw), "getsockopt") == 1 else {
      throw HostError("getsockopt", errno: .protocolWrongTypeForSocket)
    }
    guard try check(host_socket_listens(raw), "getsockopt") == 0 else {
      throw HostError("getsockopt", errno: .invalidArgument)
    }
    self.descriptor = descriptor
  }

  private init(connected raw: Int32) {
    descriptor = FileDescriptor(adopting: raw)
  }

  init(accepted raw: Int32) {
    descriptor = FileDescriptor(adopting: raw)
  }

  /// Connects to a listening socket's file. While its queue is full, tries again until the time is over.
  ///
  /// - Throws: ENOENT if nothing is there, ENOTSOCK if it is something else than a socket, ECONNREFUSED if there is no
  ///   listener, ENAMETOOLONG if the path has more than 107 bytes, EACCES, EAGAIN if the queue stayed full.
  public static func connect(to path: String, timeout: Duration = .seconds(5)) throws(HostError) -> UnixSocket {
    let end = host_clock_monotonic() &+ nanoseconds(timeout)
    while true {
      let socket = FileDescriptor(adopting: try check(host_unix_socket(), "socket"))
      // Safe: the string is a NUL-terminated copy that lives across the call.
      let result = unsafe host_unix_connect(socket.rawValue, path)
      if result == 0 {
        try socket.setNonblocking(false)
        return UnixSocket(connected: socket.release())
      }
      if result == -ECONNREFUSED, Self.isSomethingElse(path) {
        throw HostError("connect", errno: .notSocket, subject: path)
      }
      guard result == -EAGAIN, host_clock_monotonic() < end else {
        throw HostError("connect", errno: Errno(rawValue: -result), subject: path)
      }
      // Nothing can be polled for room in a listener's queue.
      _ = host_poll(-1, 0, -1, 2_000_000)
    }
  }

  /// Whether a file or a directory is where a socket should be: connect(2) has no answer of its own for that.
  private static func isSomethingElse(_ path: String) -> Bool {
    var identity = host_identity()
    // Safe: the string is a NUL-terminated copy, the structure is one of integers, and both live across the call.
    guard unsafe host_path_identity(path, &identity) == 0 else { return false }
    let kind = host_kind(identity.mode)
    // A link or a device says nothing yet.
    return kind == HOST_KIND_REGULAR || kind == HOST_KIND_DIRECTORY
  }

  /// Two sockets connected to each other.
  public static func pair() throws(HostError) -> (UnixSocket, UnixSocket) {
    var first: Int32 = -1
    var second: Int32 = -1
    // Safe: two integers, written before the call returns.
    try check(unsafe host_unix_pair(&first, &second), "socketpair")
    return (UnixSocket(connected: first), UnixSocket(connected: second))
  }

  /// The number, for `Poller` and for passing to a child, while this object lives.
  public var rawValue: Int32 { descriptor.rawValue }

  /// The process that connected, or made the pair.
  public func peer() throws(HostError) -> PeerCredentials {
    var process: Int32 = 0
    var user: UInt32 = 0
    var group: UInt32 = 0
    // Safe: three integers, written before the call returns.
    try check(unsafe host_socket_peer(rawValue, &process, &user, &group), "getsockopt SO_PEERCRED")
    return PeerCredentials(process: process, user: user, group: group)
  }

  /// Bytes that are here to be received.
  public func pendingBytes() throws(HostError) -> Int {
    Int(try check(host_socket_pending(rawValue), "ioctl FIONREAD"))
  }

  /// The first bytes that are here, `count` at most, without taking them; descriptors stay with them too. Empty at the
  /// end, nil when none is here yet.
  public func peek(_ count: Int) throws(HostError) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    // Safe: the array has room for `count` bytes and lives across the call.
    let n = unsafe bytes.withUnsafeMutableBytes { unsafe host_peek(rawValue, $0.baseAddress, $0.count) }
    if n == -Int(EAGAIN) { return nil }
    return Array(bytes.prefix(try check(n, "recv")))
  }

  /// Ends both directions: a thread that waits in this socket, on either side, is woken.
  public func shutdown() {
    _ = host_socket_shutdown(rawValue)
  }

  /// Whether both directions are closed: the peer has gone. Waits for nothing.
  public var isHungUp: Bool { host_poll(rawValue, 0, -1, 0) & Int32(HOST_HANGUP | HOST_FAILED) != 0 }

  /// Waits for bytes, or for the peer to close.
  ///
  /// - Returns: false if the time was over or `cancel` was signalled first.
  public func waitReadable(timeout: Duration? = nil, cancel: EventFD? = nil) throws(HostError) -> Bool {
    try wait(UInt32(HOST_READABLE), until: deadline(timeout), cancel)
  }

  /// Sends all bytes, the descriptors with the first one. The caller keeps the descriptors open until this returns.
  ///
  /// An error after the first byte has gone leaves the peer with half a message: give the connection up then.
  ///
  /// - Throws: ETIMEDOUT if the peer does not read in time; ECANCELED if `cancel` was signalled while waiting for it;
  ///   EPIPE or
  ///   ECONNRESET if it is gone; EINVAL for more than `maxDescriptors`, or for descriptors without a byte.
  public func send(
    _ bytes: Span<UInt8>, descriptors: [Int32] = [], timeout: Duration? = nil, cancel: EventFD? = nil
  ) throws(HostError) {
    try checkPassing(descriptors, with: bytes)
    let end = deadline(timeout)
    var sent = 0
    while sent < bytes.count {
      if let some = try sendSome(bytes.extracting(sent..<bytes.count), descriptors: sent == 0 ? descriptors : []) {
        sent += some
      } else {
        try waitOrFail(UInt32(HOST_WRITABLE), until: end, cancel, "sendmsg")
      }
    }
  }

  /// Sends all bytes, the descriptors with the first one, if the socket takes them now.
  ///
  /// - Returns: `.wouldBlock` if it takes nothing: nothing was sent then.
  /// - Throws: as ``send(_:descriptors:timeout:cancel:)``; ETIMEDOUT if it took a part only, after which the connection
  ///   is of no use.
  public func sendNow(_ bytes: Span<UInt8>, descriptors: [Int32] = []) throws(HostError) -> ImmediateSend {
    try checkPassing(descriptors, with: bytes)
    guard let sent = try sendSome(bytes, descriptors: descriptors) else { return .wouldBlock }
    try send(bytes.extracting(sent..<bytes.count), timeout: .zero)
    return .sent
  }

  private func checkPassing(_ descriptors: [Int32], with bytes: Span<UInt8>) throws(HostError) {
    guard descriptors.count <= Self.maxDescriptors, descriptors.isEmpty || !bytes.isEmpty else {
      throw HostError("sendmsg", errno: .invalidArgument)
    }
  }

  /// Bytes that the socket took; nil if it takes none now.
  private func sendSome(_ bytes: Span<UInt8>, descriptors: [Int32]) throws(HostError) -> Int? {
    // Safe: both buffers live across the call and their own counts are passed.
    let result = unsafe bytes.withUnsafeBufferPointer { bytes in
      unsafe descriptors.withUnsafeBufferPointer { descriptors in
        unsafe host_send(
          rawValue, bytes.baseAddress, bytes.count, descriptors.baseAddress, Int32(descriptors.count))
      }
    }
    if result == -Int(EAGAIN) { return nil }
    return try check(result, "sendmsg")
  }

  /// Receives what is here, without waiting, into `bytes` from `offset` on. Descriptors that come along are appended.
  ///
  /// - Throws: EMFILE if a descriptor had to be dropped because this process may not open more: what came is then
  ///   incomplete.
  public func receive(
    into bytes: inout MutableSpan<UInt8>, at offset: Int = 0, descriptors: inout FileDescriptorList
  ) throws(HostError) -> Received {
    precondition(offset >= 0 && offset < bytes.count, "room for at least a byte")
    var passed = InlineArray<253, Int32>(repeating: -1)
    var count: Int32 = 0
    var truncated: Int32 = 0
    var slots = passed.mutableSpan
    // Safe: the range [offset, count) lies in `bytes`; `slots` has room for HOST_MAX_PASSED; the rest are integers.
    let result = unsafe bytes.withUnsafeMutableBufferPointer { bytes in
      unsafe slots.withUnsafeMutableBufferPointer { slots in
        unsafe host_receive(
          rawValue, bytes.baseAddress! + offset, bytes.count - offset, slots.baseAddress, &count, &truncated)
      }
    }
    if result == -Int(EAGAIN) { return .nothingYet }
    for i in 0..<Int(count) { descriptors.append(FileDescriptor(adopting: passed[i])) }
    try check(result, "recvmsg")
    if truncated != 0 { throw HostError("recvmsg", errno: .tooManyOpenFiles) }
    return result == 0 ? .closed : .bytes(result)
  }

  /// Receives exactly `bytes.count` bytes, waiting for them. Descriptors that come along are appended.
  ///
  /// - Returns: false if the peer closed before the first byte.
  /// - Throws: ECONNRESET if it closed later; ETIMEDOUT or ECANCELED if the time was over or `cancel` was signalled
  ///   before all
  ///   were here: the bytes so far are lost then.
  public func receiveAll(
    into bytes: inout MutableSpan<UInt8>, descriptors: inout FileDescriptorList, timeout: Duration? = nil,
    cancel: EventFD? = nil
  ) throws(HostError) -> Bool {
    let end = deadline(timeout)
    var count = 0
    while count < bytes.count {
      switch try receive(into: &bytes, at: count, descriptors: &descriptors) {
      case .bytes(let more): count += more
      case .nothingYet: try waitOrFail(UInt32(HOST_READABLE), until: end, cancel, "recvmsg")
      case .closed:
        if count == 0 { return false }
        throw HostError("recvmsg", errno: .connectionReset)
      }
    }
    return true
  }

  /// The end of a time limit on the monotonic clock; nil for none.
  private func deadline(_ timeout: Duration?) -> Int64? {
    guard let timeout else { return nil }
    let (end, overflow) = host_clock_monotonic().addingReportingOverflow(nanoseconds(timeout))
    return overflow ? nil : end
  }

  private func wait(_ events: UInt32, until end: Int64?, _ cancel: EventFD?) throws(HostError) -> Bool {
    let left = end.map { max(0, $0 - host_clock_monotonic()) } ?? -1
    let ready = UInt32(try check(host_poll(rawValue, events, cancel?.rawValue ?? -1, left), "poll"))
    return ready & ~UInt32(HOST_CANCELLED) != 0
  }

  private func waitOrFail(_ events: UInt32, until end: Int64?, _ cancel: EventFD?, _ call: String) throws(HostError) {
    if try wait(events, until: end, cancel) { return }
    let cancelled = try cancel?.wait(timeout: .zero) ?? false
    throw HostError(call, errno: cancelled ? .canceled : .timedOut)
  }
}

/// A socket that the parent process opened for us, by what it turned out to be.
public enum InheritedSocket: Sendable {
  case connected(UnixSocket)
  case listening(UnixListener)

  /// Takes over the descriptor of this number, which was passed at start (`--fd`) and which no other code will close.
  ///
  /// - Throws: as ``init(adopting:)``. What is no such socket stays open: it may be in use for something else.
  public init(passed number: Int32) throws(HostError) {
    try Self.checkKind(number)
    try self.init(adopting: FileDescriptor(adopting: number))
  }

  /// Takes over a descriptor, and closes it if it cannot be used.
  ///
  /// - Throws: ENOTSOCK if it is no socket, EPROTOTYPE if not a Unix stream socket, EBADF if not open, ENOTCONN if it
  ///   neither
  ///   listens nor is connected.
  public init(adopting descriptor: consuming FileDescriptor) throws(HostError) {
    let raw = descriptor.rawValue
    try Self.checkKind(raw)
    // It is ours from here on; a process we start must not have it.
    try check(host_set_close_on_exec(raw), "fcntl")
    if try check(host_socket_listens(raw), "getsockopt") == 1 {
      self = .listening(try UnixListener(adopting: descriptor))
    } else {
      let socket = try UnixSocket(adopting: descriptor)
      // The kernel has no peer's user for a socket that was never connected.
      guard try socket.peer().user != .max else {
        throw HostError("getsockopt", errno: .socketNotConnected, subject: "descriptor \(raw)")
      }
      self = .connected(socket)
    }
  }
  private static func checkKind(_ raw: Int32) throws(HostError) {
    guard try check(host_socket_is_unix_stream(raw), "getsockopt", "descriptor \(raw)") == 1 else {
      throw HostError("getsockopt", errno: .protocolWrongTypeForSocket, subject: "descriptor \(raw)")
    }
  }
}
