internal import CLinux

/// An eventfd: one side signals, the other is woken. Kicks, calls and stops are such.
///
/// Any thread may use it. A descriptor a peer passed is wrapped the same way, and trusted with nothing: it may turn out to be a
/// pipe or a file, and then at worst nobody is woken.
public final class EventFD: Sendable {
  private let descriptor: FileDescriptor

  /// A new one, close-on-exec and non-blocking.
  public init() throws(HostError) {
    descriptor = FileDescriptor(adopting: try check(host_eventfd(), "eventfd"))
  }

  /// One that was received or inherited. Its description becomes non-blocking: neither `signal()` nor `drain()` may wait for a peer.
  public init(adopting descriptor: consuming FileDescriptor) throws(HostError) {
    try descriptor.setNonblocking(true)
    self.descriptor = descriptor
  }

  /// The number, for `Poller` and for passing to a peer, while this object lives.
  public var rawValue: Int32 { descriptor.rawValue }

  /// Wakes the other side. Signals add up until drained, and a full counter is as good as signalled.
  ///
  /// - Returns: false if the descriptor takes no signal at all (a peer passed something else).
  @discardableResult
  public func signal() -> Bool {
    host_eventfd_signal(rawValue) == 0
  }

  /// Takes the signals since the last time, so that a poller sleeps again.
  ///
  /// - Returns: how many; 0 if there was none.
  /// - Throws: if it can never be signalled again (EPIPE) or cannot be read: stop polling it then, it would be ready for ever.
  @discardableResult
  public func drain() throws(HostError) -> Int64 {
    try check(host_eventfd_drain(rawValue), "read eventfd")
  }

  /// Waits for a signal, without draining it.
  ///
  /// - Returns: false if the time was over first.
  public func wait(timeout: Duration? = nil) throws(HostError) -> Bool {
    try check(host_poll(rawValue, UInt32(HOST_READABLE), -1, nanoseconds(timeout)), "poll") != 0
  }
}
