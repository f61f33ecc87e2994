internal import DMA
internal import Examination
internal import VhostUserFrontend

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
