import Examination
import Testing
import VfioUserCheck
import VirtioTestKit

@Suite("A check of vfio-user can fail", .timeLimit(.minutes(10))) struct FaultTests {
  @Test("A server that behaves badly is found out", arguments: Flaw.all)
  func found(flaw: Flaw) throws {
    let served = try ServedFunction.nvme()
    // Waiting for what never comes is the point of some of these.
    let patience: Duration = flaw.verdict == .wedged || flaw.verdict == nil ? .milliseconds(500) : .seconds(20)
    for name in flaw.checks {
      let subject = FaultySubject(served.path, wire: flaw.wire, flaw.fault)
      let (results, summary) = try results(subject, only: [name], patience: patience)
      let result = try #require(results[name])
      #expect(
        flaw.verdict.map { $0 == result.verdict } ?? result.verdict.isFault,
        "\(name): \(result.verdict.rawValue): \(result.evidence)")
      #expect(!summary.isClean)
    }
  }

  @Test("Every check is broken by some flaw")
  func complete() {
    let found = Set(Flaw.all.flatMap(\.checks)), all = Set(VfioCheckRun.all.map(\.name))
    #expect(all.subtracting(found).isEmpty, "nothing shows that these can fail: \(all.subtracting(found).sorted())")
    #expect(found.subtracting(all).isEmpty, "there are no such checks: \(found.subtracting(all).sorted())")
  }

  @Test("A proxy between both ends that changes nothing changes no verdict")
  func honest() throws {
    let served = try ServedFunction.nvme()
    let (results, _) = try results(FaultySubject(served.path))
    for result in results.values where result.verdict.isFault || result.verdict == .notChecked {
      Issue.record("\(result.name): \(result.verdict.rawValue): \(result.evidence)")
    }
  }
}
