public import DMA

/// A system call that failed: whose fault is this host.
///
/// Prints as `open /srv/disk.img: No such file or directory (ENOENT)`.
public struct HostError: Error, Hashable, Sendable, CustomStringConvertible {
  /// What was tried, by the name of the call (`open`, `sendmsg`), or of the step where no call has one (`lock`).
  public let call: String
  /// What it was tried on, a path mostly; empty where nothing is worth naming.
  public let subject: String
  /// Why.
  public let errno: Errno

  /// A call that failed.
  public init(_ call: String, errno: Errno, subject: String = "") {
    self.call = call
    self.subject = subject
    self.errno = errno
  }

  /// Memory of the host that could not be mapped.
  public init(_ error: MappingError) { self.init("mmap", errno: Errno(rawValue: error.code)) }

  /// Whether this host ran out of something that comes back when others let go of it: descriptors, or memory for them.
  public var isShortage: Bool {
    switch errno {
    case .tooManyOpenFiles, .tooManyOpenFilesInSystem, .noBufferSpace, .noMemory: true
    default: false
    }
  }

  /// The C library's sentence for the number: `No such file or directory`.
  public var reason: String { errno.reason }

  public var description: String { subject.isEmpty ? "\(call): \(errno)" : "\(call) \(subject): \(errno)" }
}

/// The result of a host function, or the error in it. `subject` is evaluated on failure only.
@discardableResult
func check<Result: FixedWidthInteger & SignedInteger>(
  _ result: Result, _ call: String, _ subject: @autoclosure () -> String = ""
) throws(HostError) -> Result {
  if result >= 0 { return result }
  throw HostError(call, errno: Errno(rawValue: Int32(truncatingIfNeeded: 0 &- result)), subject: subject())
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
