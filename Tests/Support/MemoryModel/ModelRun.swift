import VirtioTestKit

/// Machine after machine against the model, from a seed on. Each machine has a seed of its own, the next number.
public struct ModelRun {
  /// What was done.
  public struct Sums: Sendable {
    public var machines = 0
    public var steps = 0
    public var requests = 0
    public var faults = 0
  }
  /// A disagreement, and how to have it again.
  public struct Mismatch: Error, CustomStringConvertible, Sendable {
    /// The machine's own.
    public var seed: UInt64
    /// Steps until it showed.
    public var steps: Int
    public var what: String
    /// What was done last, first what was last.
    public var journal: [String]
    /// Repeats it.
    public var command: String
    public var description: String {
      "seed \(seed), step \(steps): \(what)\n  " + journal.joined(separator: "\n  ") + "\nagain: \(command)"
    }
  }
  /// Steps of a machine.
  public static var stepsPerMachine: Int { 250 }
  /// The same, of one whose drivers are threads.
  static var concurrentSteps: Int { 40 }
  public private(set) var sums = Sums()
  /// The next machine's.
  public private(set) var seed: UInt64
  private let flaw: Flaw?

  private let onlyConcurrent: Bool?

  /// - Parameters:
  ///   - flaw: a defect to plant in each machine.
  ///   - concurrent: whether drivers run on threads, which the order of events then depends on; nil: on some machines.
  public init(seed: UInt64, flaw: Flaw? = nil, concurrent: Bool? = nil) {
    self.seed = seed
    onlyConcurrent = concurrent
    self.flaw = flaw
  }

  /// Runs one machine.
  public mutating func next() throws(Mismatch) {
    let own = seed
    seed &+= 1
    sums.machines += 1
    var journal: [String] = []
    var steps = 0
    do {
      if isConcurrent(own) {
        let run = try ConcurrentRun(seed: own, flaw: flaw)
        defer { (steps, journal) = (run.steps, run.journal) }
        for _ in 0..<Self.concurrentSteps { try run.step() }
        try run.finish()
      } else {
        let run = try MachineRun(seed: own, flaw: flaw)
        defer {
          (steps, journal) = (run.steps, run.journal)
          sums.requests += run.requests
          sums.faults += run.faults
        }
        for _ in 0..<Self.stepsPerMachine { try run.step() }
        try run.end()
      }
      sums.steps += steps
    } catch {
      sums.steps += steps
      throw Mismatch(seed: own, steps: steps, what: "\(error)", journal: journal, command: command(own))
    }
  }

  private func command(_ seed: UInt64) -> String {
    "sluice-bench model --seed \(seed) --machines 1\(onlyConcurrent.map { $0 ? " --drivers threads" : " --drivers none" } ?? "")"
      + (flaw.map { " --flaw \($0)" } ?? "")
  }

  /// One machine of eight has its drivers on threads.
  private func isConcurrent(_ seed: UInt64) -> Bool { onlyConcurrent ?? (seed % 8 == 7) }
}
