internal import CLinux

/// A timer on the monotonic clock that a `Poller` can watch.
public final class TimerFD: Sendable {
  private let descriptor: FileDescriptor

  /// A timer that is not armed.
  public init() throws(HostError) {
    descriptor = FileDescriptor(adopting: try check(host_timer(), "timerfd_create"))
  }

  /// The number, for `Poller`, while this object lives.
  public var rawValue: Int32 { descriptor.rawValue }

  /// Arms it, replacing an earlier setting. A first expiry of zero or less is as soon as possible.
  public func arm(after first: Duration, repeating interval: Duration? = nil) throws(HostError) {
    let first = max(1, nanoseconds(first))
    try check(host_timer_set(rawValue, first, interval.map { max(1, nanoseconds($0)) } ?? 0), "timerfd_settime")
  }

  /// Takes the expiries since the last time; 0 if there was none.
  @discardableResult
  public func drain() throws(HostError) -> Int64 {
    try check(host_eventfd_drain(rawValue), "read timerfd")
  }
}
