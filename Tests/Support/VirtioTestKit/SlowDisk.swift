import SlowFiles

/// An image on a file system that answers late: storage with a latency.
public final class SlowDisk: Sendable {
  private let number: Int32
  /// Where the image is, for this process only.
  public let path: String

  /// Why there is none here, as `errno` has it, or nil. It takes root, and /dev/fuse.
  public static let refusal: Int32? = {
    let number = slow_files_start(4096, 0, 0, 0)
    guard number >= 0 else { return -number }
    slow_files_stop(number)
    return nil
  }()

  /// Whether there is one. Says so if not: tests that need it are skipped.
  public static func isThere() -> Bool {
    if let refusal {
      print("SKIPPED: no slow storage to be had, errno \(refusal): tests that need it prove nothing here")
    }
    return refusal == nil
  }

  /// - Parameters: how long a read and a flush take. Milliseconds.
  public init(byteCount: Int, read: Int = 0, flush: Int = 0) throws {
    number = slow_files_start(UInt64(byteCount), UInt32(read), 0, UInt32(flush))
    guard number >= 0 else { throw SlowDiskError(code: -number) }
    path = "/proc/self/fd/\(slow_files_root(number))/disk"
  }

  deinit { slow_files_stop(number) }

  /// What the image holds at a place.
  public static func byte(at position: Int) -> UInt8 { UInt8(truncatingIfNeeded: position / 512 &* 7 &+ position) }
}

/// The file system could not be made.
public struct SlowDiskError: Error {
  /// An `errno`.
  public var code: Int32
}
