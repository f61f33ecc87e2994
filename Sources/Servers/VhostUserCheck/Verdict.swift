internal import DMA
internal import VhostUserFrontend

/// How a back-end stands to a rule.
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
  var key: String {
    switch self {
    case .notOffered: "not_offered"
    case .notChecked: "not_checked"
    case .kept, .broken, .wedged, .crashed: rawValue
    }
  }

  /// Whether it says that the back-end did wrong.
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
struct Finding: Error, Hashable {
  var verdict: Verdict
  var evidence: String

  static func broken(_ evidence: String) -> Finding { Finding(verdict: .broken, evidence: evidence) }
  static func wedged(_ evidence: String) -> Finding { Finding(verdict: .wedged, evidence: evidence) }
  static func notOffered(_ evidence: String) -> Finding { Finding(verdict: .notOffered, evidence: evidence) }
  static func notChecked(_ evidence: String) -> Finding { Finding(verdict: .notChecked, evidence: evidence) }
}

extension Finding {
  /// What a front-end's failure says of the back-end.
  init(_ error: FrontendError) {
    switch error {
    case .timedOut: self = .wedged("\(error)")
    case .closed, .violation, .refused: self = .broken("\(error)")
    case .notNegotiated: self = .notOffered("\(error)")
    case .host, .memory, .misuse: self = .notChecked("\(error)")
    }
  }

  /// Whether the back-end said no, by an answer or by ending the connection.
  static func isRefusal(_ error: FrontendError) -> Bool {
    switch error {
    case .refused, .closed: true
    default: false
    }
  }
}

/// Runs `body` and says what its failure means.
func judged<R: ~Copyable>(_ body: () throws(FrontendError) -> R) throws(Finding) -> R {
  try rethrowing(body(), as: Finding.init)
}

/// How a back-end said no to `body`, or nil if it did not.
func refusal(_ body: () throws(FrontendError) -> Void) throws(Finding) -> String? {
  do throws(FrontendError) {
    try body()
    return nil
  } catch {
    guard Finding.isRefusal(error) else { throw Finding(error) }
    if case .closed = error { return "it closed the connection" }
    return "it was refused"
  }
}

extension Check {
  /// The evidence for a message that has to be refused.
  static let tookIt = "the message was acknowledged with 0, which says that it was carried out"
}

func expect(_ condition: Bool, _ otherwise: @autoclosure () -> String) throws(Finding) {
  if !condition { throw .broken(otherwise()) }
}
