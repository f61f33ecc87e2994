import Testing
import Virtio
import VirtioServing

@testable import sluice

@Suite("What explain says of a report, for people and for programs", .timeLimit(.minutes(10))) struct ExplainTextTests {
  /// A disk behind an IOMMU, with 1 MiB of memory of which four pages are mapped.
  private func confined(identities: UInt64 = 0, invalidations: UInt64 = 1, moved: UInt64 = 0) -> ServingReport {
    var report = ServingReport()
    report.name = "blk"
    report.device = .block
    report.isConnected = true
    report.sessions = 1
    report.offeredFeatures = [.version1, .accessPlatform]
    report.negotiatedFeatures = [.version1, .accessPlatform]
    report.addressPath = .platform
    report.memoryBytes = 1 << 20
    report.reachableBytes = 16384
    report.peakReachableBytes = 16384
    report.iotlb.updates = 4
    report.iotlb.identities = identities
    report.iotlb.invalidations = invalidations
    report.iotlb.moved = moved
    return report
  }

  @Test("Pass-through is said to grant all of memory on request, without a share of it")
  func passThrough() {
    let words = confined(identities: 4).words
    #expect(words.contains("1.0 MiB on request") && words.contains("16.0 KiB now") && !words.contains("%"), "\(words)")
  }

  @Test("Confinement is said in bytes and in per cent of the guest's memory")
  func exposure() {
    let words = confined(identities: 3).words
    #expect(words.contains("16.0 KiB now") && words.contains("(1.5 %)"), "\(words)")
    #expect(!words.contains("ats=on"))
  }

  @Test("Unmaps that do not arrive are a warning with the option that helps")
  func missing() { #expect(confined(invalidations: 0, moved: 1).words.contains("ats=on")) }

  @Test("Advice is a warning in words and in JSON, whose keys and values a program can read")
  func advice() {
    var report = confined()
    report.advice = "virtqueue 0 is to run, and none of the guest's memory is shared"
    report.protocolFeatures = [3, 5]
    #expect(report.words.contains("virtqueue 0 is to run"))
    let json = report.json
    #expect(json.contains("\"warning\":\"virtqueue 0 is to run"))
    #expect(json.contains("\"protocol_features\":[3,5]") && json.contains("\"address_path\":\"platform\""), "\(json)")
  }
}
