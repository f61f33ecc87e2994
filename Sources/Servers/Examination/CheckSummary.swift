/// Why no check could be made.
public enum CheckError: Error, Hashable, Sendable {
  /// There is no server to connect to; the reason as half a sentence.
  case unreachable(String)
  /// The server ended after the first connection, and there is no way to start it anew.
  case servesOneConnection
  /// There is no check of this name.
  case noSuchCheck(String)
}

/// How many checks ended how.
public struct CheckSummary: Hashable, Sendable {
  /// Results by verdict; verdicts that did not occur are missing.
  public var counts: [Verdict: Int] = [:]
  /// Checks that were left out because the server was gone for good.
  public var left = 0
  /// The time of it all.
  public var milliseconds = 0
  /// Whether nothing was broken, wedged or crashed, and nothing left out.
  public var isClean: Bool { left == 0 && counts.allSatisfy { !$0.key.isFault || $0.value == 0 } }
}

/// As people know it: SIGSEGV and not 11.
package func name(ofSignal number: Int32) -> String {
  let names: [Int32: String] = [
    4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 15: "SIGTERM",
    31: "SIGSYS",
  ]
  return names[number] ?? "signal \(number)"
}

package func milliseconds(_ time: Duration) -> Int {
  let (seconds, rest) = time.components
  return Int(seconds) * 1000 + Int(rest / 1_000_000_000_000_000)
}
