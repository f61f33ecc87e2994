internal import CLinux
internal import Glibc

/// A program that this process started, and ends when the object goes. One thread uses it.
///
/// It reads nothing; what it prints goes into memory, of which ``lastLine`` shows the end.
public final class ChildProcess {
  /// What became of it.
  public enum State: Hashable, Sendable {
    case running
    /// It ended by itself, with this status.
    case ended(Int32)
    /// This signal killed it.
    case killed(Int32)
  }

  private let identifier: Int32
  private let output: MemoryFile
  private var last = State.running

  /// Starts a program by its path, or by its name in PATH. `command` is its name and arguments, at least the name; a
  /// NUL in one of them is EINVAL.
  public init(_ command: [String]) throws(HostError) {
    guard let name = command.first, !command.contains(where: { $0.utf8.contains(0) }) else {
      throw HostError("posix_spawn", errno: .invalidArgument)
    }
    let output = try MemoryFile(name: "output", size: 0)
    let words = command.flatMap { Array($0.utf8CString) }
    var identifier: Int32 = -1
    // Safe: the array holds as many NUL-terminated strings as are announced and lives across the call, which copies
    // them; the number is written before it returns.
    let result = unsafe words.withUnsafeBufferPointer {
      unsafe host_process_start($0.baseAddress, command.count, output.descriptor.rawValue, &identifier)
    }
    try check(result, "posix_spawn", name)
    self.identifier = identifier
    self.output = output
  }

  deinit { end() }

  /// What it is doing now.
  public var state: State {
    guard last == .running else { return last }
    var status: Int32 = 0
    var signal: Int32 = 0
    // Safe: two integers, written before the call returns.
    let result = unsafe host_process_look(identifier, &status, &signal)
    if result == 0 { return .running }
    // Another caller collected its status: it has ended all the same.
    last = result > 0 && signal != 0 ? .killed(signal) : .ended(result > 0 ? status : 0)
    return last
  }

  /// Ends it: asks with SIGTERM, and kills it when it has not gone after a second.
  public func end() {
    guard state == .running else { return }
    _ = host_process_signal(identifier, SIGTERM)
    for _ in 0..<200 where state == .running { _ = host_poll(-1, 0, -1, 5_000_000) }
    guard state == .running else { return }
    _ = host_process_signal(identifier, SIGKILL)
    while state == .running { _ = host_poll(-1, 0, -1, 1_000_000) }
  }

  /// The last line that it printed so far; empty if there is none.
  public var lastLine: String {
    guard let size = try? output.size(), size > 0 else { return "" }
    var bytes = [UInt8](repeating: 0, count: Int(min(size, 4096)))
    // Safe: the array has room for `count` bytes and lives across the call.
    let n = unsafe bytes.withUnsafeMutableBytes {
      unsafe pread(output.descriptor.rawValue, $0.baseAddress, $0.count, Int(size) - $0.count)
    }
    let text = String(decoding: bytes.prefix(max(0, n)), as: UTF8.self)
    return text.split(whereSeparator: \.isNewline).last.map(String.init) ?? ""
  }
}

/// A socket's file, as a client sees it that waits for it to appear.
public enum SocketFile {
  /// Whether there is a socket at this path.
  public static func exists(_ path: String) -> Bool {
    var identity = host_identity()
    // Safe: the string is a NUL-terminated copy that lives across the call; the structure is written before it returns.
    guard unsafe host_path_identity(path, &identity) == 0 else { return false }
    return host_kind(identity.mode) == HOST_KIND_SOCKET
  }

  /// Removes the socket at this path, if there is one; anything else stays.
  public static func remove(_ path: String) {
    guard exists(path) else { return }
    // Safe: as in `exists`.
    _ = unsafe host_unlink(path)
  }
}
