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

  @Test(
    "Over vfio-user the answer says what the client maps, what follows from it, and which accesses were refused last")
  func client() {
    var report = confined()
    var client = ServingReport.Client()
    (client.mappings, client.mappedBytes, client.maps, client.unmaps) = (4, 16384, 12, 8)
    (client.files, client.fileBytes, client.vectors, client.connectedVectors) = (1, 1 << 20, 3, 2)
    (client.interrupts, client.lostInterrupts) = (5, 1)
    (client.refusals, client.lastRefusals) = (7, ["nothing is mapped at 0x1000, which was to be read"])
    report.client = client
    #expect(report.faults == 7 && !report.looksLikePassThrough)
    for part in [
      "client       connected", "VIRTIO_F_ACCESS_PLATFORM: offered, accepted", "only what the client has mapped",
      "12 DMA_MAP and 8 DMA_UNMAP", "7 accesses were refused", "nothing is mapped at 0x1000", "2 of 3 MSI-X vectors",
      "1 dropped", "a message each", "(1.5 %)",
    ] {
      #expect(report.words.contains(part), "\(report.words)")
    }
    #expect(report.json.contains(#""last_faults":["nothing is mapped at 0x1000, which was to be read"]"#))
    client.mappedBytes = 1 << 20
    report.client = client
    #expect(report.looksLikePassThrough && report.words.contains("nearly all of the memory that it shares"))
    client.mappings = 0
    report.client = client
    #expect(report.words.contains("has mapped nothing"))
  }

  @Test("Memory without a descriptor counts as reachable, and a machine's own is not taken for what a guest mapped")
  func clientWithoutDescriptors() {
    var report = ServingReport()
    var client = ServingReport.Client()
    (client.mappings, client.mappingsWithoutDescriptor, client.bytesWithoutDescriptor) = (6, 6, 512 << 20)
    (report.client, report.isConnected, report.sessions, report.otherKind) = (client, true, 2, "nvme")
    #expect(report.looksLikePassThrough && !client.verdict.contains("only what the client has mapped"))
    #expect(client.verdict.contains("whether they are all of the guest's memory it does not say"))
    #expect(report.words.contains("6 now, 512.0 MiB") && report.words.contains("since the server started"))
    (client.mappings, client.mappingsWithoutDescriptor, client.bytesWithoutDescriptor) = (40, 40, 160 << 10)
    #expect(!client.mapsEverything && client.verdict.contains("only what the client has mapped"))
  }

  @Test("Whether doorbells are in shared memory is the client's choice, where there is one")
  func doorbells() {
    var report = ServingReport()
    var client = ServingReport.Client()
    report.client = client
    #expect(report.words.contains("a message each\n"))
    client.offersSharedDoorbells = true
    report.client = client
    #expect(report.words.contains("its choice"))
    report.isConnected = true
    #expect(report.words.contains("has not asked for the memory"))
    client.sharesDoorbells = true
    report.client = client
    #expect(report.words.contains("in memory shared with the client: 0 taken"))
  }
}
