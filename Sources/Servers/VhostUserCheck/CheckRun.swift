internal import HostIO
internal import VhostUser
public import Virtio

/// Why no check could be made.
public enum CheckError: Error, Hashable, Sendable {
  /// There is no back-end to connect to; the reason as half a sentence.
  case unreachable(String)
  /// The back-end ended after the first connection, and there is no way to start it anew.
  case servesOneConnection
  /// There is no check of this name.
  case noSuchCheck(String)
}

/// How many checks ended how.
public struct CheckSummary: Hashable, Sendable {
  /// Results by verdict; verdicts that did not occur are missing.
  public var counts: [Verdict: Int] = [:]
  /// Checks that were left out because the back-end was gone for good.
  public var left = 0
  /// The time of it all.
  public var milliseconds = 0
  /// Whether nothing was broken, wedged or crashed, and nothing left out.
  public var isClean: Bool { left == 0 && counts.allSatisfy { !$0.key.isFault || $0.value == 0 } }
}

/// All checks on one back-end, one after the other, each on connections of its own.
///
/// One thread uses it. Nothing is ever written to a disk behind the back-end.
public final class CheckRun {
  private let context: CheckContext
  private let checks: [Check]
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
    if let unknown = only.first(where: { name in !Check.all.contains { $0.name == name } }) {
      throw .noSuchCheck(unknown)
    }
    checks = only.isEmpty ? Check.all : Check.all.filter { only.contains($0.name) }
  }

  /// The names, rules and sentences of all checks, in their order.
  public static var all: [(name: String, rule: String, sentence: String)] {
    Check.all.map { ($0.name, $0.rule, $0.sentence) }
  }

  /// Those of some checks, or of all for an empty list.
  public static func list(only: [String] = []) throws(CheckError) -> [(name: String, rule: String, sentence: String)] {
    if let unknown = only.first(where: { name in !Check.all.contains { $0.name == name } }) {
      throw .noSuchCheck(unknown)
    }
    return all.filter { only.isEmpty || only.contains($0.name) }
  }

  /// The same as objects of JSON, one each.
  public static func listJSON(only: [String] = []) throws(CheckError) -> [String] {
    try list(only: only).map { check in
      var object = JSONObject()
      object.add("check", check.name)
      object.add("rule", check.rule)
      object.add("says", check.sentence)
      return object.text
    }
  }

  /// A warning as an object of JSON.
  public static func json(warning: String) -> String {
    var object = JSONObject()
    object.add("warning", warning)
    return object.text
  }

  /// What the back-end offers, as the run has learned it: for a headline.
  public var offer: (features: [Int], protocolFeatures: [String], queues: Int) {
    (context.offeredFeatures.bits, context.offeredProtocol.names, context.queueCount)
  }

  /// Runs the checks, and reports each result as it is known.
  ///
  /// - Parameter warn: called first, with a sentence, if the back-end does not look like the device it is checked as.
  public func run(warn: (String) -> Void = { _ in }, _ report: (CheckResult) -> Void) throws(CheckError) -> CheckSummary
  {
    let clock = ContinuousClock()
    let start = clock.now
    try meet()
    let doubt = context.device.doubt(
      features: context.offeredFeatures.bits, queueCount: context.queueCount, others: others)
    if let doubt { warn(doubt) }
    var summary = CheckSummary()
    for (place, check) in checks.enumerated() {
      guard isThere() else {
        summary.left = checks.count - place
        break
      }
      let begin = clock.now
      var finding = examine(check)
      context.closeAll()
      if finding.verdict != .notOffered {
        if let worse = aftermath() {
          finding = Finding(verdict: worse.verdict, evidence: join(finding, worse))
        } else if finding.verdict.isFault, case .ended(let status) = context.subject.life, status != 0 {
          finding.evidence += ", and its process ended with status \(status)"
        }
      }
      report(
        CheckResult(
          name: check.name, rule: check.rule, sentence: check.sentence, verdict: finding.verdict,
          evidence: finding.evidence,
          milliseconds: milliseconds(clock.now - begin)))
      summary.counts[finding.verdict, default: 0] += 1
    }
    summary.milliseconds = milliseconds(clock.now - start)
    return summary
  }

  private func join(_ finding: Finding, _ worse: Finding) -> String {
    finding.verdict == .kept || finding.evidence == worse.evidence
      ? worse.evidence : "\(worse.evidence); before that: \(finding.evidence)"
  }

  private func examine(_ check: Check) -> Finding {
    if let missing = check.missing(context) { return .notOffered(missing) }
    do throws(Finding) { return Finding(verdict: .kept, evidence: try check.body(context)) } catch { return error }
  }

  /// Learns what the back-end offers, and whether it stays when a front-end goes.
  private func meet() throws(CheckError) {
    if context.subject.life != .unknown, context.subject.life != .running { _ = context.subject.renew() }
    do throws(Finding) { try context.survey() } catch { throw .unreachable(error.evidence) }
    context.closeAll()
    switch presence() {
    case .answers: break
    case .gone:
      guard context.subject.life != .unknown else { throw .servesOneConnection }
      context.endsWithConnection = true
    case .silent: throw .unreachable("it answers the first connection only")
    }
    context.closeAll()
  }

  private func isThere() -> Bool {
    switch context.subject.life {
    case .running where !mustRenew, .unknown where !mustRenew: return true
    default:
      mustRenew = false
      return context.subject.renew()
    }
  }

  /// The current back-end cannot be used any more.
  private var mustRenew = false

  private enum Presence { case answers, silent, gone }

  /// Whether the back-end answers a new front-end.
  private func presence() -> Presence {
    let end = ContinuousClock.now + context.patience
    var refused = 0
    while ContinuousClock.now < end {
      switch context.subject.life {
      case .ended, .killed: return .gone
      case .running, .unknown: break
      }
      do throws(HostError) {
        let socket = try context.subject.connect(timeout: context.patience)
        defer { socket.shutdown() }
        let connection = RawConnection(socket, patience: context.patience)
        do throws(Finding) {
          if try connection.isAnswered() { return .answers }
        } catch {
          return .silent
        }
      } catch {
        refused += 1
        // Its process, if we know it, says for sure; otherwise a third of a second has to do.
        if context.subject.life == .unknown, refused > 30 { return .gone }
      }
      pause(.milliseconds(10))
    }
    return context.subject.life == .unknown ? .gone : .silent
  }

  /// What is wrong with the back-end after a check, or nil.
  private func aftermath() -> Finding? {
    let presence = presence()
    switch (presence, context.subject.life) {
    case (_, .killed(let signal)): return Finding(verdict: .crashed, evidence: "\(name(ofSignal: signal)) killed it")
    case (.gone, .ended(let status)) where !context.endsWithConnection:
      return Finding(verdict: .crashed, evidence: "its process ended with status \(status)")
    case (.gone, .ended): return nil
    case (.gone, _):
      mustRenew = true
      return Finding(verdict: .crashed, evidence: "its socket has no listener any more")
    case (.silent, _):
      mustRenew = true
      return Finding(verdict: .wedged, evidence: "it does not answer the next connection")
    case (.answers, _): return nil
    }
  }
}

/// As people know it: SIGSEGV and not 11.
func name(ofSignal number: Int32) -> String {
  let names: [Int32: String] = [
    4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 15: "SIGTERM",
    31: "SIGSYS",
  ]
  return names[number] ?? "signal \(number)"
}

func milliseconds(_ time: Duration) -> Int {
  let (seconds, rest) = time.components
  return Int(seconds) * 1000 + Int(rest / 1_000_000_000_000_000)
}
