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
    StandardStream.error.print("sluice: \(sentence)")
    exit(status)
  }
}
