internal import CLinux
internal import Glibc

/// An eventfd: one side signals, the other is woken. Kicks, calls and stops are such.
///
/// Any thread may use it. A descriptor a peer passed is wrapped the same way, and not trusted: it may turn out to be a
/// pipe or a file, and then the worst result is a lost wake-up.
public final class EventFD: Sendable {
  private let descriptor: FileDescriptor
  /// A peer has the same open description and may make it blocking at any time. A read can be made non-blocking all the
  /// same; a write to an eventfd cannot, so the mode is read before each write, and a blocking one is polled first. A
  /// peer that changes the mode in just that moment can still hold up the signalling thread.
  private let isShared: Bool
  /// A peer may pass something that can only be read.
  private let isWritable: Bool

  /// A new one, close-on-exec and non-blocking.
  public init() throws(HostError) {
    descriptor = FileDescriptor(adopting: try check(host_eventfd(), "eventfd"))
    isShared = false
    isWritable = true
  }

  /// One that was received or inherited. Its description becomes non-blocking: neither `signal()` nor `drain()` may
  /// wait for a peer.
  public init(adopting descriptor: consuming FileDescriptor) throws(HostError) {
    try descriptor.setNonblocking(true)
    isWritable = fcntl(descriptor.rawValue, F_GETFL) & O_ACCMODE != O_RDONLY
    self.descriptor = descriptor
    isShared = true
  }

  /// The number, for `Poller` and for passing to a peer, while this object lives.
  public var rawValue: Int32 { descriptor.rawValue }

  /// Cheaper than to ask every time whether it is ready.
  private var mayBlock: Bool { isShared && fcntl(rawValue, F_GETFL) & O_NONBLOCK == 0 }

  /// Wakes the other side. Signals add up until drained, and a full counter is as good as signalled.
  ///
  /// - Returns: false if the descriptor takes no signal at all (a peer passed something else).
  @discardableResult
  public func signal() -> Bool {
    guard isWritable else { return false }
    if mayBlock, host_poll(rawValue, UInt32(HOST_WRITABLE), -1, 0) == 0 { return true }
    return host_eventfd_signal(rawValue) == 0
  }

  /// Takes the signals since the last time, so that a poller sleeps again.
  ///
  /// - Returns: how many; 0 if there was none.
  /// - Throws: if it can never be signalled again (EPIPE) or cannot be read: stop polling it then, it would be ready
  ///   for ever.
  @discardableResult
  public func drain() throws(HostError) -> Int64 {
    if isShared {
      let count = host_eventfd_drain_at_once(rawValue)
      if count != -Int64(EOPNOTSUPP) { return try check(count, "read eventfd") }
      if mayBlock, host_poll(rawValue, UInt32(HOST_READABLE), -1, 0) == 0 { return 0 }
    }
    return try check(host_eventfd_drain(rawValue), "read eventfd")
  }

  /// Waits for a signal, without draining it.
  ///
  /// - Returns: false if the time was over, or `cancel` was signalled, first.
  public func wait(timeout: Duration? = nil, cancel: EventFD? = nil) throws(HostError) -> Bool {
    let ready = try check(
      host_poll(rawValue, UInt32(HOST_READABLE), cancel?.rawValue ?? -1, nanoseconds(timeout)), "poll")
    return UInt32(ready) & ~UInt32(HOST_CANCELLED) != 0
  }
}
