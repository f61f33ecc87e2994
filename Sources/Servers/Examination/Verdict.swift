/// How a server stands to a rule.
public enum Verdict: String, CaseIterable, Sendable {
  /// It did what the rule says.
  case kept
  /// It did something else, and still runs.
  case broken
  /// It stopped answering, or a ring it was given came to nothing.
  case wedged
  /// Its process died, or its socket has no listener any more.
  case crashed
  /// It does not offer what the rule is about.
  case notOffered = "not offered"
  /// The check could not be made, for a reason on this side.
  case notChecked = "not checked"

  /// Its key in a summary in JSON: in snake_case, as every key is.
  package var key: String {
    switch self {
    case .notOffered: "not_offered"
    case .notChecked: "not_checked"
    case .kept, .broken, .wedged, .crashed: rawValue
    }
  }

  /// Whether it says that the server did wrong.
  public var isFault: Bool { self == .broken || self == .wedged || self == .crashed }
}

/// What one check found.
public struct CheckResult: Hashable, Sendable {
  /// The check's name, unique: what `--only` takes.
  public var name: String
  /// What it is about: a rule's number, or a message's name.
  public var rule: String
  /// The rule in one sentence.
  public var sentence: String
  public var verdict: Verdict
  /// What was observed, in one sentence.
  public var evidence: String
  /// How long it took.
  public var milliseconds: Int
}

/// Why a check ended early.
package struct Finding: Error, Hashable {
  package var verdict: Verdict
  package var evidence: String

  package init(verdict: Verdict, evidence: String) {
    self.verdict = verdict
    self.evidence = evidence
  }

  package static func broken(_ evidence: String) -> Finding { Finding(verdict: .broken, evidence: evidence) }
  package static func wedged(_ evidence: String) -> Finding { Finding(verdict: .wedged, evidence: evidence) }
  package static func notOffered(_ evidence: String) -> Finding { Finding(verdict: .notOffered, evidence: evidence) }
  package static func notChecked(_ evidence: String) -> Finding { Finding(verdict: .notChecked, evidence: evidence) }
}

package func expect(_ condition: Bool, _ otherwise: @autoclosure () -> String) throws(Finding) {
  if !condition { throw .broken(otherwise()) }
}
