internal import Glibc

/// The process's environment, for what a service manager passes.
public enum Environment {
  /// A variable's value, or nil if it is not set.
  public static func value(of name: String) -> String? {
    // Safe: the value is copied before anything could change the environment; nothing in this package does.
    unsafe getenv(name).map { unsafe String(cString: $0) }
  }
}
