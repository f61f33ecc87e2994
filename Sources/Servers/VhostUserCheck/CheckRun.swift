public import Examination
internal import VhostUser
public import Virtio

/// All checks on one back-end, one after the other, each on connections of its own.
///
/// One thread uses it. Nothing is ever written to a disk behind the back-end.
public final class CheckRun {
  private let context: CheckContext
  private let loop: CheckLoop<Check>
  private let others: [DeviceProbe]

  /// - Parameters:
  ///   - device: the kind of device that the back-end is checked as.
  ///   - others: kinds that it may be instead, to name one in a warning.
  ///   - patience: how long each answer and each request may take.
  ///   - only: names of the checks to make; empty for all.
  public init(
    _ subject: any CheckSubject, _ device: DeviceProbe, others: [DeviceProbe] = [], patience: Duration = .seconds(3),
    only: [String] = []
  ) throws(CheckError) {
    context = CheckContext(subject, device, patience: patience)
    self.others = others
    loop = try CheckLoop(context, Check.all, only: only)
  }

  /// The names, rules and sentences of all checks, in their order.
  public static var all: [CheckEntry] { Check.all.entries }

  /// Those of some checks, or of all for an empty list.
  public static func list(only: [String] = []) throws(CheckError) -> [CheckEntry] { try Check.all.named(only).entries }

  /// The same as objects of JSON, one each.
  public static func listJSON(only: [String] = []) throws(CheckError) -> [String] { try Check.all.named(only).json }

  /// What the back-end offers, as the run has learned it: for a headline.
  public var offer: (features: [Int], protocolFeatures: [String], queues: Int) {
    (context.offeredFeatures.bits, context.offeredProtocol.names, context.queueCount)
  }

  /// Runs the checks, and reports each result as it is known.
  ///
  /// - Parameter warn: called first, with a sentence, if the back-end does not look like the device it is checked as.
  public func run(warn: (String) -> Void = { _ in }, _ report: (CheckResult) -> Void) throws(CheckError) -> CheckSummary
  {
    let (context, others) = (context, others)
    return try loop.run(
      met: {
        let doubt = context.device.doubt(
          features: context.offeredFeatures.bits, queueCount: context.queueCount, others: others)
        if let doubt { warn(doubt) }
      }, report)
  }
}
