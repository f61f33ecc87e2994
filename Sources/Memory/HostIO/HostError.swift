internal import CLinux
internal import Glibc

/// A system call that failed: whose fault is this host.
///
/// Prints as `open /srv/disk.img: No such file or directory (ENOENT)`.
public struct HostError: Error, Hashable, Sendable, CustomStringConvertible {
  /// What was tried, by the name of the call (`open`, `sendmsg`), or of the step where no call has one (`lock`).
  public let call: String
  /// What it was tried on, a path mostly; empty where nothing is worth naming.
  public let subject: String
  /// The number from `errno.h`, positive.
  public let errno: Int32

  /// An error with a positive error number.
  public init(_ call: String, errno: Int32, subject: String = "") {
    self.call = call
    self.subject = subject
    self.errno = errno
  }

  /// Whether this host ran out of a resource that becomes available again when others release it: descriptors, or
  /// memory for them.
  public var isShortage: Bool { errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM }

  /// The C library's sentence for the number: `No such file or directory`.
  public var reason: String {
    // Safe: the C library's text is constant, NUL-terminated and lives as long as the process.
    guard let text = unsafe host_error_text(errno) else { return "error \(errno)" }
    return unsafe String(cString: text)
  }

  /// The number's name, `ENOENT`; nil if it has none.
  public var name: String? {
    // Safe: as in `reason`.
    guard let text = unsafe host_error_name(errno) else { return nil }
    return unsafe String(cString: text)
  }

  public var description: String {
    let what = subject.isEmpty ? call : "\(call) \(subject)"
    return name.map { "\(what): \(reason) (\($0))" } ?? "\(what): \(reason)"
  }
}

/// The result of a host function, or the error in it. `subject` is evaluated on failure only.
@discardableResult
func check<Result: FixedWidthInteger & SignedInteger>(
  _ result: Result, _ call: String, _ subject: @autoclosure () -> String = ""
) throws(HostError) -> Result {
  if result >= 0 { return result }
  throw HostError(call, errno: Int32(truncatingIfNeeded: 0 &- result), subject: subject())
}

/// A time limit as the host functions take it: nanoseconds, -1 for none, never less than 0 otherwise.
func nanoseconds(_ limit: Duration?) -> Int64 {
  guard let limit else { return -1 }
  let (seconds, attoseconds) = limit.components
  if seconds < 0 || attoseconds < 0 { return 0 }
  let (whole, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
  if overflow { return .max }
  let (sum, carry) = whole.addingReportingOverflow(attoseconds / 1_000_000_000)
  return carry ? .max : sum
}
