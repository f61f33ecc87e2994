import DMA
import HostIO
import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

@Suite("The dirty log while other things change", .timeLimit(.minutes(10))) struct LogTests {
  /// A front-end with a ring and a log, and a device that holds what it takes.
  private final class Logged {
    let disk: HoldingDevice
    let frontend: RawFrontend
    let bits: HostMapping

    init() throws {
      disk = try HoldingDevice(.block)
      frontend = try RawFrontend.sharing(device: disk)
      bits = try frontend.startLog()
      try frontend.must(.setFeatures(Features.version1.word | 1 << 30 | 1 << 26))
      try frontend.startRing(log: 1)
      frontend.submitRead(sector: 0)
      #expect(try disk.taken.wait(timeout: .seconds(10)))
    }

    func isMarked(_ guest: UInt64) -> Bool {
      bits.bytes(1, at: Int(guest / 4096 / 8))[0] & (1 << UInt8(guest / 4096 % 8)) != 0
    }
  }

  @Test(
    "What a request in flight writes when the memory table is replaced is marked wherever the new one shows the same bytes (R132, R133)"
  )
  func replacedTable() throws {
    let logged = try Logged()
    let frontend = logged.frontend
    // The same memory in two pieces, and as a whole at another address.
    var first = frontend.region, second = frontend.region, alias = frontend.region
    first.size /= 2
    second.guestAddress += first.size
    second.frontendAddress += first.size
    second.offset = first.size
    second.size = first.size
    alias.guestAddress += 1 << 28
    alias.frontendAddress += 1 << 28
    let file = frontend.memory.descriptor.rawValue
    try frontend.send(.setMemoryTable([first, second, alias]), ack: true, [file, file, file])
    #expect(eventually { frontend.server.statistics.memoryRegions == 3 })
    #expect(frontend.usedIndex == 0)
    logged.disk.release.signal()
    #expect(try frontend.nextAnswer().word == 0)
    #expect(frontend.usedIndex == 1)
    for place in [RawFrontend.Place.data, RawFrontend.Place.status, RawFrontend.Place.used] {
      #expect(
        logged.isMarked(first.guestAddress + UInt64(place)) && logged.isMarked(alias.guestAddress + UInt64(place)),
        "\(place)")
    }
    #expect(!logged.isMarked(first.guestAddress + UInt64(RawFrontend.Place.header)))
  }

  @Test("What a request in flight writes when its memory is taken away is marked (R132)")
  func removedRegion() throws {
    let logged = try Logged()
    let frontend = logged.frontend
    try frontend.send(.removeMemoryRegion(frontend.region), ack: true)
    #expect(eventually { frontend.server.statistics.memoryRegions == 0 })
    logged.disk.release.signal()
    #expect(try frontend.nextAnswer().word == 0)
    #expect(logged.isMarked(RawFrontend.guest + UInt64(RawFrontend.Place.data)))
    #expect(logged.isMarked(RawFrontend.guest + UInt64(RawFrontend.Place.used)))
  }
}
