internal import CLinux

/// How many descriptors this process may have open.
public enum OpenFileLimit {
  /// What is in force, and how far it may be raised.
  public static func current() throws(HostError) -> (soft: UInt64, hard: UInt64) {
    var soft: UInt64 = 0
    var hard: UInt64 = 0
    // Safe: two integers, written before the call returns.
    try check(unsafe host_open_files_limit(&soft, &hard), "getrlimit")
    return (soft, hard)
  }

  /// Sets it, to the hard limit at most.
  public static func set(_ count: UInt64) throws(HostError) {
    try check(host_set_open_files_limit(count), "setrlimit")
  }

  /// Raises it as far as it may go: a front-end may pass hundreds of memory regions and two eventfds a queue.
  public static func raise() throws(HostError) {
    try set(current().hard)
  }
}
