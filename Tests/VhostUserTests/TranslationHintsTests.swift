import HostIO
import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

@Suite("What updates say about the IOMMU behind them", .timeLimit(.minutes(10))) struct TranslationHintsTests {
  private func confined(_ lines: LogLines? = nil) throws -> RawFrontend {
    let frontend = try RawFrontend.sharing([.version1, .accessPlatform], logger: lines?.logger)
    // What was agreed shows after the messages that came together.
    _ = try eventually {
      _ = try frontend.ask(.getQueueCount)
      return frontend.server.statistics.addressPath != nil
    }
    return frontend
  }

  private func tell(_ frontend: RawFrontend, _ address: UInt64, at place: UInt64) throws {
    try frontend.must(.iotlb(.update(address, 4096, to: RawFrontend.frontend + place)))
  }

  @Test(
    "When every mapping leads to itself, all of memory counts as reachable, and the words say that it looks like pass-through"
  )
  func passThrough() throws {
    let frontend = try confined()
    for page in 0..<4 as Range<UInt64> { try tell(frontend, RawFrontend.guest + page << 12, at: page << 12) }
    var statistics = frontend.server.statistics
    #expect(statistics.looksLikePassThrough && !statistics.missesInvalidations)
    #expect(statistics.reachableBytes == 16384 && statistics.grantableBytes == RawFrontend.memorySize)
    #expect(statistics.reason.contains("looks like pass-through"))
    #expect(statistics.memoryBytes == 1 << 20)
    // One that leads elsewhere is enough for the opposite.
    try tell(frontend, RawFrontend.iova, at: 0)
    statistics = frontend.server.statistics
    #expect(!statistics.looksLikePassThrough && statistics.grantableBytes == 20480)
    #expect(statistics.reachableBytes == 20480 && statistics.reason.contains("only what it maps"))
  }

  @Test(
    "A mapping that moved although it was never taken back is hinted at: once in the log, and in the words until one is taken back"
  )
  func lostInvalidations() throws {
    let lines = LogLines()
    let frontend = try confined(lines)
    for round in 0..<3 as Range<UInt64> {
      for page in 0..<4 as Range<UInt64> {
        try tell(frontend, RawFrontend.iova + page << 12, at: (page + 4 * round) << 12)
      }
    }
    #expect(frontend.server.statistics.missesInvalidations && frontend.server.statistics.iotlb.moved == 8)
    #expect(frontend.server.statistics.missesInvalidations)
    _ = try eventually {
      _ = try frontend.ask(.getQueueCount)
      return lines.contains("ats=on")
    }
    for _ in 0..<200 { _ = try frontend.ask(.getQueueCount) }
    #expect(lines.all.filter { $0.contains("ats=on") }.count == 1)
    try frontend.must(.iotlb(.invalidate(RawFrontend.iova, 4096)))
    #expect(!frontend.server.statistics.missesInvalidations)
  }

  @Test("Mappings that stay where they are make no such hint, however often they are told")
  func settled() throws {
    let lines = LogLines()
    let frontend = try confined(lines)
    for _ in 0..<3 {
      for page in 0..<4 as Range<UInt64> { try tell(frontend, RawFrontend.iova + page << 12, at: page << 12) }
    }
    #expect(!frontend.server.statistics.missesInvalidations && frontend.server.statistics.iotlb.moved == 0)
    #expect(try frontend.ask(.getQueueCount) == .value(1))
    #expect(lines.all.filter { $0.contains("ats=on") }.isEmpty)
  }
}
