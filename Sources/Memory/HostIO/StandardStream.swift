internal import CLinux
internal import Glibc

/// The process's standard output and error, as places to print to, unbuffered.
public enum StandardStream: Int32, Sendable {
  case output = 1
  case error = 2

  /// Writes all of it, or as much as the reader takes.
  public func write(_ bytes: Span<UInt8>) throws(HostError) {
    var done = 0
    while done < bytes.count {
      // Safe: the range is inside the span, which lives across the call.
      let n = unsafe bytes.withUnsafeBufferPointer {
        unsafe Glibc.write(rawValue, $0.baseAddress! + done, $0.count - done)
      }
      if n < 0 {
        let error = Errno(rawValue: errno)
        if error == .interrupted { continue }
        throw HostError("write", errno: error)
      }
      done += n
    }
  }

  /// Writes a text. Without a reader the text is dropped, and no error is reported.
  public func print(_ text: String, terminator: String = "\n") {
    let bytes = Array((text + terminator).utf8)
    try? write(bytes.span)
  }

  /// Opens /dev/null for every one of the three standard descriptors that is closed: the next file that is opened, a
  /// disk's image say, would get its number, and the log would be written into it. To be called first of all.
  public static func fillClosed() {
    for number in 0...StandardStream.error.rawValue {
      guard fcntl(number, F_GETFD) < 0 else { continue }
      // The lowest number that is free is this one. Without /dev/null there is nothing better to open.
      // Safe: the string is a NUL-terminated copy that lives across the call.
      _ = unsafe open("/dev/null", O_RDWR)
    }
  }

  /// Whether the stream is the journal's: what `JOURNAL_STREAM` names in its environment, as systemd sets it.
  public var isJournal: Bool {
    guard let named = Environment.value(of: "JOURNAL_STREAM") else { return false }
    var facts = host_file_facts()
    // Safe: one structure of integers, written before the call returns.
    guard unsafe host_file_facts(rawValue, &facts) == 0 else { return false }
    return named == "\(facts.device):\(facts.inode)"
  }
}
