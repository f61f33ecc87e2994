import ArgumentParser
import Foundation
import MemoryModel

/// Random machines against the naive model, for as long as wanted.
struct ModelBench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "model",
    abstract: "Tests random machines against a naive model of their memory, and ends at the first difference.",
    discussion: """
      Each machine has a seed of its own; the first is given or random, the next is one higher. A mismatch is printed \
      with the last steps and the command that repeats them, and the exit status is 1. One machine of eight has its \
      drivers on threads: its seed repeats the machine, but not the order of events.
      """)

  @Option(help: "Seconds to run.") var seconds = 60.0
  @Option(help: "The first machine's seed; random by default.") var seed: UInt64?
  @Option(help: "End after this many machines, even before the time is over.") var machines: Int?
  @Option(help: "Which machines have their drivers on threads: some, all (threads) or none.") var drivers = Drivers.some
  @Option(help: "Plant a defect: \(Flaw.allCases.map(\.rawValue).joined(separator: ", ")).") var flaw: String?

  enum Drivers: String, ExpressibleByArgument {
    case some, threads, none
    var concurrent: Bool? {
      switch self {
      case .some: nil
      case .threads: true
      case .none: false
      }
    }
  }

  mutating func run() throws {
    let first = seed ?? UInt64.random(in: 0..<1 << 40)
    let planted = try flaw.map { name in
      guard let flaw = Flaw(rawValue: name) else { throw ValidationError("there is no defect \(name)") }
      return flaw
    }
    say("model: seed \(first)")
    var run = ModelRun(seed: first, flaw: planted, concurrent: drivers.concurrent)
    let began = ContinuousClock.now
    var minutes = 1
    while machines.map({ run.sums.machines < $0 }) ?? (ContinuousClock.now < began + .seconds(seconds)) {
      do throws(ModelRun.Mismatch) {
        try run.next()
      } catch {
        say("model: MISMATCH \(error)")
        throw ExitCode.failure
      }
      if ContinuousClock.now >= began + .seconds(60 * minutes) {
        say("model: \(minutes) min, \(text(run.sums)), next seed \(run.seed)")
        minutes += 1
      }
    }
    say("model: ok, \(text(run.sums))")
  }

  private func text(_ sums: ModelRun.Sums) -> String {
    "\(sums.machines) machines, \(sums.steps) steps, \(sums.requests) requests checked, \(sums.faults) of them faults"
  }

  /// Printed at once, to a terminal or a pipe.
  private func say(_ line: String) { FileHandle.standardOutput.write(Data((line + "\n").utf8)) }
}
