import Glibc
import HostIO

/// Why the command ends early: one sentence on standard error, and an exit status.
struct Failure: Error {
  var sentence: String
  var status: Int32

  /// What was typed cannot be done; the sentence says what to type instead.
  static func usage(_ sentence: String) -> Failure { Failure(sentence: sentence, status: 2) }
  /// This host cannot do it; the sentence says what to do about it.
  static func host(_ sentence: String) -> Failure { Failure(sentence: sentence, status: 1) }

  func end() -> Never {
    // The reader of standard error may be stuck: that must not keep the command from ending.
    if let writer = try? LineWriter(StandardStream.error.rawValue, lossLine: { _ in "" }) {
      writer.write("sluice: \(sentence)")
      writer.flush(within: .seconds(1))
    } else {
      StandardStream.error.print("sluice: \(sentence)")
    }
    exit(status)
  }
}
