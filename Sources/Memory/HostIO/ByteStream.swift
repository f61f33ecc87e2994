internal import CLinux
internal import Glibc

/// A pipe, socket or file opened elsewhere, to be read or written from front to back.
///
/// Any thread may use it. Its description is made non-blocking, which other holders of it see as well.
public final class ByteStream: Sendable {
  /// How a read ended.
  public enum Received: Hashable, Sendable {
    /// This many bytes came, at least one.
    case bytes(Int)
    /// None is here yet.
    case nothingYet
    /// There will be no more.
    case end
  }

  private let descriptor: FileDescriptor

  /// Takes over a descriptor.
  public init(adopting descriptor: consuming FileDescriptor) throws(HostError) {
    try descriptor.setNonblocking(true)
    self.descriptor = descriptor
  }

  /// The number, for `Poller`, while this object lives.
  public var rawValue: Int32 { descriptor.rawValue }

  /// Reads what is here, without waiting.
  public func read(into bytes: inout MutableSpan<UInt8>) throws(HostError) -> Received {
    precondition(!bytes.isEmpty, "room for at least a byte")
    // Safe: the span's own count is passed, and it lives across the call.
    let result = unsafe bytes.withUnsafeMutableBufferPointer {
      unsafe host_stream_read(rawValue, $0.baseAddress, $0.count)
    }
    if result == -Int64(EAGAIN) { return .nothingYet }
    let count = try check(result, "read")
    return count == 0 ? .end : .bytes(Int(count))
  }

  /// Writes what fits now, without waiting. Returns how many bytes went; 0 if none did.
  ///
  /// - Throws: EPIPE if there is no reader any more.
  public func write(_ bytes: Span<UInt8>) throws(HostError) -> Int {
    // Safe: as in `read`.
    let result = unsafe bytes.withUnsafeBufferPointer { unsafe host_stream_write(rawValue, $0.baseAddress, $0.count) }
    if result == -Int64(EAGAIN) { return 0 }
    return Int(try check(result, "write"))
  }

  /// Waits until a read, or with `forWriting` a write, will do something.
  ///
  /// - Returns: false if the time was over first.
  public func wait(forWriting: Bool = false, timeout: Duration? = nil) throws(HostError) -> Bool {
    let events = UInt32(forWriting ? HOST_WRITABLE : HOST_READABLE)
    return try check(host_poll(rawValue, events, -1, nanoseconds(timeout)), "poll") != 0
  }
}
