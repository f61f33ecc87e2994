import DeviceCatalog
import Examination
import Testing
import VhostUserBackend
import VhostUserCheck
import Virtio
import VirtioBlock
import VirtioEntropy
import VirtioServing
import VirtioTestKit

@Suite("Our own back-ends under examination", .serialized, .timeLimit(.minutes(10))) struct OwnBackendTests {
  private func expectNoFault(_ results: [String: CheckResult], _ summary: CheckSummary) {
    for result in results.values where result.verdict != .kept && result.verdict != .notOffered {
      Issue.record("\(result.rule) \(result.name): \(result.verdict.rawValue): \(result.evidence)")
    }
    #expect(summary.isClean)
    #expect(results.count == CheckRun.all.count)
  }

  @Test("The disk keeps every rule that can be checked")
  func disk() throws {
    let disk = try ServedDisk()
    let (results, summary) = try results(SocketSubject(path: disk.served.path), .block)
    expectNoFault(results, summary)
    #expect(summary.counts == [.kept: CheckRun.all.count])
  }

  @Test("The source of random numbers keeps every rule that can be checked")
  func entropy() throws {
    let served = try ServedDevice(EntropyDevice())
    let (results, summary) = try results(SocketSubject(path: served.path), .entropy)
    expectNoFault(results, summary)
  }

  @Test(
    "A device that writes nothing is examined to the end, and keeps every rule", arguments: ["net", "vsock"])
  func reader(name: String) throws {
    // All that a network interface does on its transmit queue, or a socket device.
    let probe = try #require(DeviceKind(rawValue: name)?.probe)
    let queues = [UInt16](repeating: 256, count: probe.queueCount)
    let reader = TestDevice(name == "net" ? .network : .socket, queues: queues) { chain in
      _ = chain.readable.bytes()
      return 0
    }
    let served = try ServedDevice(reader)
    let (results, summary) = try results(SocketSubject(path: served.path), probe)
    expectNoFault(results, summary)
    #expect(
      results["renegotiated"]?.verdict == .kept && results["invalidate"]?.evidence == "the address was asked for again")
  }

  @Test("What is not offered is not checked, and said to be so")
  func withoutTheBit() throws {
    let disk = try ServedDisk(options: BackendOptions(name: "test", accessPlatform: .off))
    let names = ["translated", "invalidate-lazy", "split", "feature-not-offered"]
    let (results, summary) = try results(SocketSubject(path: disk.served.path), .block, only: names)
    #expect(results["translated"]?.verdict == .notOffered)
    #expect(results["invalidate-lazy"]?.evidence == "VIRTIO_F_ACCESS_PLATFORM is not offered")
    #expect(results["split"]?.verdict == .kept)
    #expect(results["feature-not-offered"]?.verdict == .kept)
    #expect(summary.counts == [.kept: 2, .notOffered: 2] && summary.isClean)
  }

  @Test("Names are unique, and every check says its rule")
  func names() {
    #expect(Set(CheckRun.all.map(\.name)).count == CheckRun.all.count)
    for check in CheckRun.all { #expect(!check.rule.isEmpty && check.sentence.hasSuffix("."), "\(check.name)") }
  }

  @Test("No back-end to check, or no such check, is an error before anything is done")
  func noBackend() throws {
    #expect(throws: CheckError.self) {
      try results(SocketSubject(path: "/nonexistent/socket"), .block, patience: .milliseconds(50))
    }
    #expect(throws: CheckError.noSuchCheck("x")) {
      try CheckRun(SocketSubject(path: "/nonexistent"), .block, only: ["x"])
    }
  }
}
