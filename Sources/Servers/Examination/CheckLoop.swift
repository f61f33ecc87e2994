package import HostIO

/// A way to the server that is checked, in its protocol. One thread uses it.
package protocol CheckedServer: AnyObject {
  var subject: any CheckSubject { get }
  /// How long one answer may take.
  var patience: Duration { get }
  /// The server ends with its client: that is its design and no crash, and the next client needs a new one.
  var endsWithConnection: Bool { get set }
  /// Learns what the server offers.
  func survey() throws(Finding)
  /// Ends all connections of a check.
  func closeAll()
  /// Whether the server answers on a new connection; false: it ended the connection first.
  func isAnswered(_ socket: UnixSocket) throws(Finding) -> Bool
}

/// One question to a server.
package protocol CheckQuestion: Sendable {
  associatedtype Server: CheckedServer
  /// Unique, and what `--only` takes.
  var name: String { get }
  /// A rule's number (`R108`), or the message that it is about.
  var rule: String { get }
  /// The rule in one sentence.
  var sentence: String { get }
  /// Asks it.
  func examine(_ server: Server) -> Finding
}

/// Checks on one server, one after the other, each on connections of its own; and after each, whether it is still there.
package final class CheckLoop<Question: CheckQuestion> {
  private let server: Question.Server
  private let questions: [Question]
  /// The current server cannot be used any more.
  private var mustRenew = false

  /// - Parameter only: names of the questions to ask, out of all; empty for all.
  package init(_ server: Question.Server, _ all: [Question], only: [String]) throws(CheckError) {
    self.server = server
    questions = try all.named(only)
  }

  /// Runs the checks, and reports each result as it is known.
  ///
  /// - Parameter met: called when it is known what the server offers, before the first check.
  package func run(met: () -> Void, _ report: (CheckResult) -> Void) throws(CheckError) -> CheckSummary {
    let clock = ContinuousClock()
    let start = clock.now
    try meet()
    met()
    var summary = CheckSummary()
    for (place, question) in questions.enumerated() {
      guard isThere() else {
        summary.left = questions.count - place
        break
      }
      let begin = clock.now
      var finding = question.examine(server)
      server.closeAll()
      if finding.verdict != .notOffered {
        if let worse = aftermath() {
          finding = Finding(verdict: worse.verdict, evidence: join(finding, worse))
        } else if finding.verdict.isFault, case .ended(let status) = server.subject.life, status != 0 {
          finding.evidence += ", and its process ended with status \(status)"
        }
      }
      report(
        CheckResult(
          name: question.name, rule: question.rule, sentence: question.sentence, verdict: finding.verdict,
          evidence: finding.evidence, milliseconds: milliseconds(clock.now - begin)))
      summary.counts[finding.verdict, default: 0] += 1
    }
    summary.milliseconds = milliseconds(clock.now - start)
    return summary
  }

  private func join(_ finding: Finding, _ worse: Finding) -> String {
    finding.verdict == .kept || finding.evidence == worse.evidence
      ? worse.evidence : "\(worse.evidence); before that: \(finding.evidence)"
  }

  /// Learns what the server offers, and whether it stays when a client goes.
  private func meet() throws(CheckError) {
    if server.subject.life != .unknown, server.subject.life != .running { _ = server.subject.renew() }
    do throws(Finding) { try server.survey() } catch { throw .unreachable(error.evidence) }
    server.closeAll()
    switch presence() {
    case .answers: break
    case .gone:
      guard server.subject.life != .unknown else { throw .servesOneConnection }
      server.endsWithConnection = true
    case .silent: throw .unreachable("it answers the first connection only")
    }
    server.closeAll()
  }

  private func isThere() -> Bool {
    switch server.subject.life {
    case .running where !mustRenew, .unknown where !mustRenew: return true
    default:
      mustRenew = false
      return server.subject.renew()
    }
  }

  private enum Presence { case answers, silent, gone }

  /// Whether the server answers a new client.
  private func presence() -> Presence {
    let end = ContinuousClock.now + server.patience
    var refused = 0
    while ContinuousClock.now < end {
      switch server.subject.life {
      case .ended, .killed: return .gone
      case .running, .unknown: break
      }
      do throws(HostError) {
        let socket = try server.subject.connect(timeout: server.patience)
        defer { socket.shutdown() }
        do throws(Finding) {
          if try server.isAnswered(socket) { return .answers }
        } catch {
          return .silent
        }
      } catch {
        refused += 1
        // Its process, if we know it, says for sure; otherwise a third of a second has to do.
        if server.subject.life == .unknown, refused > 30 { return .gone }
      }
      pause(.milliseconds(10))
    }
    return server.subject.life == .unknown ? .gone : .silent
  }

  /// What is wrong with the server after a check, or nil.
  private func aftermath() -> Finding? {
    let presence = presence()
    switch (presence, server.subject.life) {
    case (_, .killed(let signal)): return Finding(verdict: .crashed, evidence: "\(name(ofSignal: signal)) killed it")
    case (.gone, .ended(let status)) where !server.endsWithConnection:
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
