internal import CLinux
internal import Glibc

/// An error number of this host, as `errno.h` names them.
///
/// Prints as `No such file or directory (ENOENT)`. swift-system has such a type, and a `FileDescriptor` that would be
/// ambiguous with ours in every file that names an error; this one has its names where it has them.
public struct Errno: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
  /// The number, positive.
  public let rawValue: Int32

  public init(rawValue: Int32) { self.rawValue = rawValue }

  /// The C library's sentence for the number: `No such file or directory`.
  public var reason: String {
    // Safe: the C library's text is constant, NUL-terminated and lives as long as the process.
    guard let text = unsafe host_error_text(rawValue) else { return "error \(rawValue)" }
    return unsafe String(cString: text)
  }

  /// The number's name, `ENOENT`; nil if it has none.
  public var name: String? {
    // Safe: as in `reason`.
    guard let text = unsafe host_error_name(rawValue) else { return nil }
    return unsafe String(cString: text)
  }

  public var description: String { name.map { "\(reason) (\($0))" } ?? reason }
}

extension Errno {
  /// EADDRINUSE.
  public static var addressInUse: Self { Self(rawValue: EADDRINUSE) }
  /// ENOTBLK.
  public static var blockDeviceRequired: Self { Self(rawValue: ENOTBLK) }
  /// EPIPE.
  public static var brokenPipe: Self { Self(rawValue: EPIPE) }
  /// ECANCELED.
  public static var canceled: Self { Self(rawValue: ECANCELED) }
  /// ECONNREFUSED.
  public static var connectionRefused: Self { Self(rawValue: ECONNREFUSED) }
  /// ECONNRESET.
  public static var connectionReset: Self { Self(rawValue: ECONNRESET) }
  /// EEXIST.
  public static var fileExists: Self { Self(rawValue: EEXIST) }
  /// ENAMETOOLONG.
  public static var fileNameTooLong: Self { Self(rawValue: ENAMETOOLONG) }
  /// EINTR.
  public static var interrupted: Self { Self(rawValue: EINTR) }
  /// EINVAL.
  public static var invalidArgument: Self { Self(rawValue: EINVAL) }
  /// EISDIR.
  public static var isDirectory: Self { Self(rawValue: EISDIR) }
  /// ENOBUFS.
  public static var noBufferSpace: Self { Self(rawValue: ENOBUFS) }
  /// ENOSYS.
  public static var noFunction: Self { Self(rawValue: ENOSYS) }
  /// ENOMEM.
  public static var noMemory: Self { Self(rawValue: ENOMEM) }
  /// ENOENT.
  public static var noSuchFileOrDirectory: Self { Self(rawValue: ENOENT) }
  /// ENOSPC.
  public static var noSpace: Self { Self(rawValue: ENOSPC) }
  /// ENOTDIR.
  public static var notDirectory: Self { Self(rawValue: ENOTDIR) }
  /// EPERM.
  public static var notPermitted: Self { Self(rawValue: EPERM) }
  /// ENOTSOCK.
  public static var notSocket: Self { Self(rawValue: ENOTSOCK) }
  /// ENOTSUP, which is EOPNOTSUPP on Linux.
  public static var notSupported: Self { Self(rawValue: ENOTSUP) }
  /// EACCES.
  public static var permissionDenied: Self { Self(rawValue: EACCES) }
  /// EPROTOTYPE.
  public static var protocolWrongTypeForSocket: Self { Self(rawValue: EPROTOTYPE) }
  /// EROFS.
  public static var readOnlyFileSystem: Self { Self(rawValue: EROFS) }
  /// EBUSY.
  public static var resourceBusy: Self { Self(rawValue: EBUSY) }
  /// ENOTCONN.
  public static var socketNotConnected: Self { Self(rawValue: ENOTCONN) }
  /// ETIMEDOUT.
  public static var timedOut: Self { Self(rawValue: ETIMEDOUT) }
  /// EMFILE.
  public static var tooManyOpenFiles: Self { Self(rawValue: EMFILE) }
  /// ENFILE.
  public static var tooManyOpenFilesInSystem: Self { Self(rawValue: ENFILE) }
  /// EAGAIN, which is EWOULDBLOCK on Linux.
  public static var wouldBlock: Self { Self(rawValue: EAGAIN) }
}
