internal import Glibc

/// The process's standard output and error, as places to print to, unbuffered.
public enum StandardStream: Int32, Sendable {
  case output = 1
  case error = 2

  /// Writes all of it, or as much as whoever listens takes.
  public func write(_ bytes: Span<UInt8>) throws(HostError) {
    var done = 0
    while done < bytes.count {
      // Safe: the range is inside the span, which lives across the call.
      let n = unsafe bytes.withUnsafeBufferPointer { unsafe Glibc.write(rawValue, $0.baseAddress! + done, $0.count - done) }
      if n < 0 {
        let code = errno
        if code == EINTR { continue }
        throw HostError("write", errno: code)
      }
      done += n
    }
  }

  /// Writes a text. Nobody may be listening; then there is nobody to tell.
  public func print(_ text: String, terminator: String = "\n") {
    let bytes = Array((text + terminator).utf8)
    try? write(bytes.span)
  }
}
