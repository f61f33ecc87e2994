import DMA
import Foundation
import MachineKit
import Testing
import Virtio
import VirtioIOMMU
import VirtioPCI
import VirtioTestKit

/// How an attack is prepared: everything before the violation is as it should be.
struct Preparation: Sendable {
  /// How far the driver has come.
  enum Stage: Sendable { case found, negotiated, enabled, live }
  var kind = Target.Kind.block
  var stage = Stage.live
  var features: Features = []
  var without: Features = []
  var platform = false
  var options: @Sendable (inout VirtioPCIOptions) -> Void = { _ in }
}

/// A violation as a row of a suite's table: what a driver does, against which clauses, where, and how.
struct Attack: Sendable {
  typealias Violation = @Sendable (Session, Target) throws -> Outcome
  var sentence: String
  var clauses: [String]
  var transports: [Transport]
  var preparation: Preparation
  var sourceLocation: SourceLocation
  var violation: Violation

  init(
    _ sentence: String, _ clauses: String..., on transports: [Transport], stage: Preparation.Stage = .live,
    features: Features = [], without: Features = [], kind: Target.Kind = .block, platform: Bool = false,
    options: @escaping @Sendable (inout VirtioPCIOptions) -> Void = { _ in },
    sourceLocation: SourceLocation = #_sourceLocation, _ violation: @escaping Violation
  ) {
    (self.sentence, self.clauses, self.transports, self.violation) = (sentence, clauses, transports, violation)
    preparation = Preparation(
      kind: kind, stage: stage, features: features, without: without, platform: platform, options: options)
    self.sourceLocation = sourceLocation
  }

  /// One that must come to nothing: a correct request in the same session decides.
  static func ignored(
    _ sentence: String, _ clauses: String..., on transports: [Transport], stage: Preparation.Stage = .live,
    sourceLocation: SourceLocation = #_sourceLocation,
    _ violation: @escaping @Sendable (Session, Target) throws -> Void
  ) -> Attack {
    var attack = Attack(sentence, on: transports, stage: stage, sourceLocation: sourceLocation) {
      try violation($0, $1)
      return .untouched
    }
    attack.clauses = clauses
    return attack
  }

  /// A row on one of its transports.
  struct Case: Sendable, CustomTestStringConvertible {
    var attack: Attack
    var transport: Transport
    var testDescription: String { "\(attack.sentence), on \(transport)" }

    func run() throws {
      try HostileDriverTests.attack(
        attack.clauses, on: transport, attack.preparation, sourceLocation: attack.sourceLocation, attack.violation)
    }
  }
  static func each(_ attacks: [Attack]) -> [Case] {
    attacks.flatMap { attack in attack.transports.map { Case(attack: attack, transport: $0) } }
  }
}

/// Lets a driver break a rule, and checks the outcome: the device answers in time, touches nothing that it was not
/// given, does not spin, and serves the next driver after a reset.
///
/// - Parameters:
///   - clauses: the rules of `ClauseTable` that are broken.
///   - body: the violation.
func attack(
  _ clauses: String..., on transport: Transport, _ preparation: Preparation = Preparation(),
  sourceLocation: SourceLocation = #_sourceLocation, _ body: (Session, Target) throws -> Outcome
) throws {
  try attack(clauses, on: transport, preparation, sourceLocation: sourceLocation, body)
}

/// As above, with any number of clauses.
func attack(
  _ clauses: [String], on transport: Transport, _ preparation: Preparation,
  sourceLocation: SourceLocation = #_sourceLocation, _ body: (Session, Target) throws -> Outcome
) throws {
  let (verdict, why) = try assess(transport, preparation, body)
  for clause in clauses { Results.shared.record(clause, transport, verdict) }
  #expect(
    verdict == .pass || verdict == .reject, "\(clauses) on \(transport): \(verdict.rawValue): \(why)",
    sourceLocation: sourceLocation)
}

/// An attack's verdict, and what speaks against the device.
func assess(
  _ transport: Transport, _ preparation: Preparation, _ body: (Session, Target) throws -> Outcome
) throws -> (Verdict, String) {
  let target = try Target(transport, preparation.kind, platform: preparation.platform, preparation.options)
  let session = Session(target, Session.features(target, adding: preparation.features, leavingOut: preparation.without))
  var verdict: Verdict
  var why = ""
  do {
    if preparation.stage != .found { try session.negotiate() }
    if preparation.stage == .enabled || preparation.stage == .live { session.enable() }
    if preparation.stage == .live { session.goLive() }
    (verdict, why) = judge(try body(session, target), session)
    if verdict == .pass || verdict == .reject {
      if let at = target.touched { throw Failure("the device wrote at 0x\(String(at, radix: 16))") }
      if isSpinning(target.name) { throw Failure("a queue thread spins") }
    }
    if verdict != .wedged { try recover(target) }
  } catch let failure as Failure {
    (verdict, why) = (.fail, failure.description)
  } catch let wedged as Wedged {
    (verdict, why) = (.wedged, wedged.description)
  }
  return (verdict, why)
}

private func judge(_ outcome: Outcome, _ session: Session) -> (Verdict, String) {
  switch outcome {
  case .untouched:
    if session.works() { return (.pass, "") }
    return session.target.driver.status.contains(.needsReset)
      ? (.reject, "")
      : (.wedged, "a correct request is not served afterwards, and the device does not say that it needs a reset")
  case .served: return session.works() ? (.pass, "") : (.wedged, "a correct request is not served afterwards")
  case .requestRefused:
    return session.works() ? (.reject, "") : (.wedged, "a correct request is not served after the one that was refused")
  case .stopped, .refused: return (.reject, "")
  case .noAnswer: return (.wedged, "no answer")
  }
}

/// The next driver resets the device, and is served elsewhere; where the last one's queue was, nothing happens any
/// more.
private func recover(_ target: Target) throws {
  try target.reset()
  // Everything that was still under way is over.
  if let at = target.touched {
    throw Failure("the device wrote at 0x\(String(at, radix: 16)) before the reset was over")
  }
  target.forbidEverything()
  if let unit = target.unit {
    guard unit.domains.isEmpty else { throw Failure("a domain outlives the reset") }
    for number in target.endpoints.keys {
      for address in [IOMMUSite.mapped.virtual, IOMMUSite.prey.virtual, IOMMUSite.bypassed]
      where target.look(number, address) != nil {
        throw Failure("endpoint \(number) reaches memory after the reset")
      }
    }
  }
  var features = Session.features(target)
  if target.transport.isPacked { features.insert(.ringPacked) }
  let session = Session(target, features, at: Session.secondBase)
  if let iommu = target.iommu {
    let start = Target.memoryStart
    iommu.map(Target.requester, DMAAddress(start), byteCount: UInt64(Target.memorySize), to: GuestAddress(start))
  }
  try session.begin()
  guard session.works(), session.works() else { throw Wedged("the next driver is not served") }
  if let at = target.touched { throw Failure("after the reset the device wrote at 0x\(String(at, radix: 16))") }
}

/// Whether threads of this name never sleep although there is nothing for them to do. Three looks in a row at which all
/// sleep show that they do.
private func isSpinning(_ name: String) -> Bool {
  let tasks = "/proc/self/task"
  let ours = ((try? FileManager.default.contentsOfDirectory(atPath: tasks)) ?? []).filter { task in
    (try? String(contentsOfFile: "\(tasks)/\(task)/comm", encoding: .utf8))?.hasPrefix(name) == true
  }
  /// The letter behind the name says what the scheduler thinks of a thread: S is asleep.
  func allSleep() -> Bool {
    ours.allSatisfy { task in
      guard let stat = try? String(contentsOfFile: "\(tasks)/\(task)/stat", encoding: .utf8),
        let end = stat.lastIndex(of: ")")
      else { return true }
      return stat[end...].dropFirst(2).first == "S"
    }
  }
  var quiet = 0
  for _ in 0..<2000 {
    quiet = allSleep() ? quiet + 1 : 0
    if quiet == 3 { return false }
    if quiet == 0 { usleep(1000) }
  }
  return true
}
