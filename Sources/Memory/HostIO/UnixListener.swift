internal import CLinux
internal import Glibc
internal import Synchronization

/// A listening Unix stream socket, and the file that leads to it.
///
/// A file left behind by a process that ended is replaced; one with a listener is not. The file is removed in the end
/// only if it is still the one made here.
public final class UnixListener: Sendable {
  private struct Place {
    let path: String
    let device: UInt64
    let inode: UInt64
  }

  private let descriptor: FileDescriptor
  private let place: Mutex<Place?>

  /// Makes the file at `path` and listens.
  ///
  /// - Throws: EADDRINUSE if another socket listens there already; EEXIST if the path is something else than a socket;
  ///   ENAMETOOLONG if it has more than 107 bytes.
  public init(path: String, backlog: Int32 = 16) throws(HostError) {
    let socket = FileDescriptor(adopting: try check(host_unix_socket(), "socket"))
    // Between bind and listen a socket looks stale. Every process that replaces stale ones holds the directory's lock
    // meanwhile.
    let directory = try Self.lockDirectory(of: path)
    // Safe: here and below, strings are NUL-terminated copies that live across the call.
    var result = unsafe host_unix_bind(socket.rawValue, path)
    if result == -EADDRINUSE {
      try Self.removeStale(path)
      result = unsafe host_unix_bind(socket.rawValue, path)
    }
    try check(result, "bind", path)
    var identity = host_identity()
    let found = unsafe host_path_identity(path, &identity)
    let listening = host_listen(socket.rawValue, backlog)
    if found == 0, listening < 0 { _ = unsafe host_unlink(path) }
    try check(listening, "listen", path)
    try check(found, "lstat", path)
    descriptor = socket
    place = Mutex(Place(path: path, device: identity.device, inode: identity.inode))
    withExtendedLifetime(directory) {}
  }

  /// Takes over a listening socket. Its file, if any, stays with its creator.
  init(adopting descriptor: consuming FileDescriptor) throws(HostError) {
    try descriptor.setNonblocking(true)
    self.descriptor = descriptor
    place = Mutex(nil)
  }

  deinit { removeFile() }

  /// The number, for `Poller`, while this object lives.
  public var rawValue: Int32 { descriptor.rawValue }

  /// The next connection; nil if none is waiting.
  public func accept() throws(HostError) -> UnixSocket? {
    let raw = host_accept(rawValue)
    if raw == -EAGAIN { return nil }
    return UnixSocket(accepted: try check(raw, "accept"))
  }

  /// Waits for a connection.
  ///
  /// - Returns: nil if the time was over or `cancel` was signalled first.
  public func accept(timeout: Duration?, cancel: EventFD? = nil) throws(HostError) -> UnixSocket? {
    let ready = UInt32(
      try check(host_poll(rawValue, UInt32(HOST_READABLE), cancel?.rawValue ?? -1, nanoseconds(timeout)), "poll"))
    return ready & ~UInt32(HOST_CANCELLED) != 0 ? try accept() : nil
  }

  /// Removes the file if it is still the one made here, so that no new client connects. Later calls do nothing.
  public func removeFile() {
    guard
      let place = place.withLock({ place in
        defer { place = nil }
        return place
      })
    else { return }
    let directory = try? Self.lockDirectory(of: place.path)
    var identity = host_identity()
    if unsafe host_path_identity(place.path, &identity) == 0, identity.device == place.device,
      identity.inode == place.inode
    {
      _ = unsafe host_unlink(place.path)
    }
    _ = consume directory
  }

  /// The lock of the directory a socket's file is in; nil if the directory cannot be opened for it. Waits a second at
  /// most.
  private static func lockDirectory(of path: String) throws(HostError) -> FileDescriptor? {
    for _ in 0..<500 {
      let raw = unsafe host_lock_parent(path)
      if raw >= 0 { return FileDescriptor(adopting: raw) }
      if raw != -EAGAIN { return nil }
      _ = host_poll(-1, 0, -1, 2_000_000)
    }
    throw HostError("flock directory of", errno: .resourceBusy, subject: path)
  }

  /// Removes a socket's file without a listener.
  private static func removeStale(_ path: String) throws(HostError) {
    var identity = host_identity()
    let found = unsafe host_path_identity(path, &identity)
    if found == -ENOENT { return }
    try check(found, "lstat", path)
    guard host_kind(identity.mode) == HOST_KIND_SOCKET else {
      throw HostError("bind", errno: .fileExists, subject: path)
    }
    let probe = FileDescriptor(adopting: try check(host_unix_socket(), "socket"))
    let answer = unsafe host_unix_connect(probe.rawValue, path)
    // A listener with a full queue is still a listener, and so is a socket of another type.
    guard answer == -ECONNREFUSED || answer == -ENOENT else {
      throw HostError(
        "bind", errno: answer == -EACCES || answer == -EPERM ? Errno(rawValue: -answer) : .addressInUse, subject: path)
    }
    let removed = unsafe host_unlink(path)
    if removed != -ENOENT { try check(removed, "unlink", path) }
  }
}
