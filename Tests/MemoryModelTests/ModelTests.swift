import Foundation
import MemoryModel
import Testing

@Suite("Random machines against a naive model of their memory", .serialized, .timeLimit(.minutes(10)))
struct ModelTests {
  /// As long as SLUICE_MODEL_SECONDS says, from SLUICE_MODEL_SEED on.
  @Test(
    "After every request each byte of memory is what the model says, the path is the one that was negotiated, a fault is reported once (R006, R029)"
  )
  func model() throws {
    let environment = ProcessInfo.processInfo.environment
    let seconds = environment["SLUICE_MODEL_SECONDS"].flatMap { Double($0) } ?? 10
    let seed = environment["SLUICE_MODEL_SEED"].flatMap { UInt64($0) } ?? UInt64.random(in: 0..<1 << 40)
    print("model: seed \(seed)")
    var run = ModelRun(seed: seed)
    let end = ContinuousClock.now + .seconds(seconds)
    repeat { try run.next() } while ContinuousClock.now < end
    print(
      "model: \(run.sums.machines) machines, \(run.sums.steps) steps, \(run.sums.requests) requests, \(run.sums.faults) faults"
    )
    #expect(run.sums.requests > 100 && run.sums.faults > 10)
  }

  @Test("A planted defect is found within 40 machines", arguments: Flaw.allCases)
  func planted(_ flaw: Flaw) throws {
    try find(flaw, in: ModelRun(seed: 1, flaw: flaw, concurrent: false), concurrent: false)
  }

  @Test(
    "What is unmapped, reset or unplugged while drivers on other threads use it does not change afterwards, and nothing hangs"
  )
  func concurrent() throws {
    var run = ModelRun(seed: 7, concurrent: true)
    for _ in 0..<4 { try run.next() }
    #expect(run.sums.steps > 100)
  }

  @Test("An invalidation that is not heeded is found while drivers on other threads use what is gone")
  func plantedConcurrently() throws {
    try find(
      .ignoresInvalidation, in: ModelRun(seed: 1, flaw: .ignoresInvalidation, concurrent: true), concurrent: true)
  }

  private func find(_ flaw: Flaw, in run: consuming ModelRun, concurrent: Bool) throws {
    var found: ModelRun.Mismatch?
    for _ in 0..<40 where found == nil {
      do throws(ModelRun.Mismatch) { try run.next() } catch { found = error }
    }
    let mismatch = try #require(found, "\(flaw) is not found")
    print("model: \(flaw) found after \(run.sums.steps) steps: \(mismatch.what)")
    // The machine without the defect is as the model says: it is the defect that was found.
    var clean = ModelRun(seed: mismatch.seed, concurrent: concurrent)
    try clean.next()
  }
}
