import Examination
import Testing
import VfioUser
import VfioUserCheck
import VirtioTestKit

@Suite("Our own vfio-user servers under examination", .serialized, .timeLimit(.minutes(10))) struct OwnServerTests {
  @Test("The NVMe controller keeps every rule that can be checked")
  func controller() throws {
    let served = try ServedFunction.nvme()
    let (results, summary) = try results(SocketSubject(path: served.path))
    for result in results.values where result.verdict != .kept && result.verdict != .notOffered {
      Issue.record("\(result.rule) \(result.name): \(result.verdict.rawValue): \(result.evidence)")
    }
    #expect(summary.isClean && results.count == VfioCheckRun.all.count)
  }

  @Test("Doorbells that can be mapped are found, and what can be mapped of the region keeps the rules")
  func doorbells() throws {
    let served = try ServedFunction.nvme(doorbells: .shared)
    let (results, _) = try results(SocketSubject(path: served.path), only: ["region-sparse"])
    #expect(results["region-sparse"]?.verdict == .kept, "\(results)")
  }

  @Test("A virtio-pci device keeps every rule that can be checked", arguments: ["blk", "rng"])
  func virtio(kind: String) throws {
    let served = try ServedFunction.virtio(kind)
    let (results, summary) = try results(SocketSubject(path: served.path))
    for result in results.values where result.verdict.isFault {
      Issue.record("\(result.rule) \(result.name): \(result.verdict.rawValue): \(result.evidence)")
    }
    #expect(summary.isClean)
    // There is a driver here for the one, and none for the other.
    #expect(results["dma"]?.verdict == (kind == "blk" ? .kept : .notOffered))
  }

  @Test("Names are unique, and every check says its rule")
  func names() {
    #expect(Set(VfioCheckRun.all.map(\.name)).count == VfioCheckRun.all.count)
    for check in VfioCheckRun.all { #expect(!check.rule.isEmpty && check.sentence.hasSuffix("."), "\(check.name)") }
  }

  @Test("No server to check, or no such check, is an error before anything is done")
  func nobody() throws {
    #expect(throws: CheckError.self) {
      try results(SocketSubject(path: "/nonexistent/socket"), patience: .milliseconds(50))
    }
    #expect(throws: CheckError.noSuchCheck("x")) { try VfioCheckRun(SocketSubject(path: "/nonexistent"), only: ["x"]) }
  }
}
