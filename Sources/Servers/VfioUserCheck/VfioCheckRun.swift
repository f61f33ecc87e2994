public import Examination

/// All checks on one vfio-user server, one after the other, each on connections of its own.
///
/// One thread uses it. Nothing is ever written to a disk behind the server; the device is reset, and its registers are
/// written.
public final class VfioCheckRun {
  private let context: CheckContext
  private let loop: CheckLoop<Check>

  /// - Parameters:
  ///   - patience: how long each answer and each request may take.
  ///   - only: names of the checks to make; empty for all.
  public init(
    _ subject: any CheckSubject, patience: Duration = .seconds(3), only: [String] = []
  ) throws(CheckError) {
    context = CheckContext(subject, patience: patience)
    loop = try CheckLoop(context, Check.all, only: only)
  }

  /// The names, rules and sentences of all checks, in their order.
  public static var all: [CheckEntry] { Check.all.entries }

  /// Those of some checks, or of all for an empty list.
  public static func list(only: [String] = []) throws(CheckError) -> [CheckEntry] { try Check.all.named(only).entries }

  /// The same as objects of JSON, one each.
  public static func listJSON(only: [String] = []) throws(CheckError) -> [String] { try Check.all.named(only).json }

  /// Runs the checks, and reports each result as it is known.
  public func run(_ report: (CheckResult) -> Void) throws(CheckError) -> CheckSummary {
    try loop.run(met: {}, report)
  }

  /// The summary as a JSON object, with what the server offers: the capabilities of its VERSION, and the size of each
  /// region.
  public func json(_ summary: CheckSummary) -> String {
    summary.json(
      context.identity.word,
      offer: [
        ("capabilities", context.offer.capabilities.keys.sorted().map { "\"\($0)\"" }),
        ("regions", context.regions.map { String($0.size) }), ("interrupts", context.interrupts.map(String.init)),
      ])
  }
}
