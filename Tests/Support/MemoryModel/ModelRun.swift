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
    public var command: String { "sluice-bench model --seed \(seed) --machines 1" }
    public var description: String { "seed \(seed), step \(steps): \(what)\n  " + journal.joined(separator: "\n  ") + "\nagain: \(command)" }
  }
  /// Steps of a machine.
  public static var stepsPerMachine: Int { 250 }
  public private(set) var sums = Sums()
  /// The next machine's.
  public private(set) var seed: UInt64
  private let flaw: Flaw?

  /// - Parameter flaw: a defect to plant in each machine.
  public init(seed: UInt64, flaw: Flaw? = nil) {
    self.seed = seed
    self.flaw = flaw
  }

  /// Runs one machine.
  public mutating func next() throws(Mismatch) {
    let own = seed
    seed &+= 1
    sums.machines += 1
    var run: MachineRun?
    do {
      let one = try MachineRun(seed: own, flaw: flaw)
      run = one
      defer {
        sums.steps += one.steps
        sums.requests += one.requests
        sums.faults += one.faults
      }
      for _ in 0..<Self.stepsPerMachine { try one.step() }
      try one.end()
    } catch {
      throw Mismatch(seed: own, steps: run?.steps ?? 0, what: "\(error)", journal: run?.journal ?? [])
    }
  }
}
