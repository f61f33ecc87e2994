internal import CLinux

/// Signals read like input, instead of interrupting something.
///
/// Make it on the first thread before any other starts, so that all of them inherit the blocked signals; threads of
/// `WorkerThread` block every signal anyway.
public final class SignalFD: Sendable {
  private let descriptor: FileDescriptor

  /// Blocks the signals in this thread and collects them. Numbers outside 1...64 are EINVAL.
  public init(_ signals: [Int32]) throws(HostError) {
    var mask: UInt64 = 0
    for signal in signals {
      guard (1...64).contains(signal) else { throw HostError("signalfd", errno: .invalidArgument) }
      mask |= 1 << UInt64(signal - 1)
    }
    try check(host_signals_block(mask), "pthread_sigmask")
    let raw = host_signalfd(mask)
    if raw < 0 { _ = host_signals_unblock(mask) }
    descriptor = FileDescriptor(adopting: try check(raw, "signalfd"))
  }

  /// The number, for `Poller`, while this object lives.
  public var rawValue: Int32 { descriptor.rawValue }

  /// The number of a signal that came in; nil if none is waiting.
  public func next() throws(HostError) -> Int32? {
    let signal = try check(host_signalfd_read(rawValue), "read signalfd")
    return signal == 0 ? nil : signal
  }

  /// Makes a write to a pipe or socket without a reader an error, for the whole process, instead of the process's end.
  public static func ignoreBrokenPipes() throws(HostError) {
    try check(host_ignore_sigpipe(), "sigaction")
  }
}
