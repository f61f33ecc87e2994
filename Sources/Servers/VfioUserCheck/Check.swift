internal import Examination

/// One question to a server.
struct Check: CheckQuestion {
  /// What it takes to ask it.
  enum Need {
    /// Any PCI device.
    case nothing
    /// A device that these checks have a driver for.
    case driver
    /// MSI-X.
    case vectors(UInt32)
  }

  var name: String
  var rule: String
  var sentence: String
  var need: Need
  /// Returns what was observed if the rule was kept; otherwise throws.
  var body: @Sendable (CheckContext) throws(Finding) -> String

  init(
    _ name: String, _ rule: String, _ sentence: String, needs need: Need = .nothing,
    _ body: @escaping @Sendable (CheckContext) throws(Finding) -> String
  ) {
    self.name = name
    self.rule = rule
    self.sentence = sentence
    self.need = need
    self.body = body
  }

  func examine(_ context: CheckContext) -> Finding {
    switch need {
    case .nothing: break
    case .driver:
      guard Driven.knows(context.identity) else {
        return .notOffered("there is no driver here for a device \(context.identity.word)")
      }
    case .vectors(let least):
      let count = context.count(ofInterrupt: Part.msix)
      guard count >= least else { return .notOffered("the device has \(count) MSI-X vectors") }
    }
    do throws(Finding) { return Finding(verdict: .kept, evidence: try body(context)) } catch { return error }
  }

  /// All checks, in the order in which they are made: what kills a server comes last.
  static let all: [Check] =
    version + discovery + regions + interrupts + mapping + traffic + unmapping + messages + lifetime + framing
    + garbage
}
