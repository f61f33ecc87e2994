import HostIO
import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

@Suite("Guest memory that is not shared, and accesses that are refused, are named", .timeLimit(.minutes(10)))
struct SharingTests {
  private let lines = LogLines()

  /// Waits until a line has been logged that has these words.
  private func waitFor(_ words: String) -> Bool { eventually { lines.contains(words) } }

  @Test("A ring that is to run without memory is one line with the option, in `explain` too, until a request arrives")
  func nothing() throws {
    let frontend = try RawFrontend(logger: lines.logger)
    try frontend.negotiate()
    // Its address cannot be looked up before there is memory.
    try frontend.startRing()
    #expect(waitFor("none of the guest's memory is shared"))
    try frontend.must(.setVringEnable(VringState(0, 1)))
    #expect(lines.all.filter { $0.contains("share=on") }.count == 1)
    let advice = try #require(frontend.server.statistics.advice)
    #expect(advice.contains("virtqueue 0") && advice.contains("share=on"))
    #expect(advice.hasPrefix("virtqueue 0 is to run"))
    try frontend.share()
    #expect(try frontend.read(sector: 1))
    // The count of requests comes a little after the request itself.
    #expect(eventually { frontend.server.statistics.advice == nil })
  }

  @Test("Kicks of a ring that stays empty are one line with the option; a first kick alone, as QEMU gives, is none")
  func copied() throws {
    let frontend = try RawFrontend.sharing(logger: lines.logger)
    try frontend.startRing()
    frontend.kick.signal()
    _ = try frontend.ask(.getQueueCount)
    #expect(!lines.all.contains { $0.contains("share=on") })
    frontend.kick.signal()
    #expect(waitFor("nothing is in it as far as this back-end can see"))
    #expect(try #require(frontend.server.statistics.advice).contains("share=on"))
  }

  @Test("A ring whose addresses lead nowhere is refused with the option")
  func elsewhere() throws {
    let frontend = try RawFrontend.sharing(logger: lines.logger)
    try frontend.must(.setVringSize(VringState(0, 16)))
    try frontend.send(.setVringAddress(frontend.address(RawFrontend.frontend + RawFrontend.memorySize)))
    try frontend.send(.setVringKick(VringDescriptor(0)), [frontend.kick.rawValue])
    try frontend.send(.setVringEnable(VringState(0, 1)))
    #expect(
      waitFor(
        "the descriptor area is not in memory that is shared with this back-end. QEMU shares it with share=on"))
  }

  @Test(
    "A refused access is one line with address and cause, thousands are few, and the answer of `explain` has the last")
  func refused() throws {
    let frontend = try RawFrontend.sharing(logger: lines.logger)
    try frontend.startRing()
    for _ in 0..<2000 {
      frontend.submitRead(sector: 0, data: 1 << 40)
      #expect(try frontend.waitUsed(frontend.availableIndex))
    }
    let told = lines.all.filter { $0.hasPrefix("access refused: ") }
    #expect(told.count >= 1 && told.count <= 16)
    let first = try #require(told.first)
    #expect(
      first.contains("nothing is mapped at 0x10040000000, which was to be written") && first.contains("share=on"),
      "\(first)")
    // What a round did is counted when it ends, which may be after its answers.
    try frontend.stopRing()
    #expect(frontend.server.statistics.faults == 2000)
    #expect(frontend.server.statistics.lastFault?.contains("0x10040000000") == true)
    #expect(lines.all.allSatisfy { !$0.contains("DMAFault") && !$0.contains("rawValue") })
  }

  @Test("What the front-end's IOMMU refuses is put down to it, and not to memory that is not shared")
  func platform() throws {
    let frontend = try RawFrontend.sharing([.version1, .accessPlatform], logger: lines.logger)
    try frontend.startRing(base: RawFrontend.iova)
    frontend.kick.signal()
    var isDone = false
    while !isDone, let (request, needsReply) = try frontend.heard() {
      guard case .iotlb(let message) = request else { continue }
      isDone = message.kind == .accessFail
      if needsReply { try frontend.answer(with: 0) }
    }
    #expect(waitFor("says the front-end's IOMMU"))
    #expect(!lines.all.contains { $0.contains("share=on") })
    #expect(
      waitFor(
        "queue 0 stopped until the driver resets the device: the ring cannot be reached: nothing is mapped at 0x9"))
  }
}
