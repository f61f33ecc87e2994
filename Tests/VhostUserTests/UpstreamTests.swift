import DMA
import HostIO
import Testing

@testable import VhostUser
@testable import VhostUserFrontend

@Suite("What a front-end makes of a back-end's translation messages", .timeLimit(.minutes(10))) struct UpstreamTests {
  /// A front-end's translator whose connection leads nowhere in particular.
  private struct Rig {
    let far: UnixSocket
    let memory: FrontendMemory
    let mappings = FrontendMappings()
    let mapping = FrontendMapping(
      address: DMAAddress(0x50_0000), byteCount: 0x4000, guestAddress: GuestAddress(0x8000), permission: .read)
    let translator: FrontendTranslator

    init() throws {
      let (near, far) = try UnixSocket.pair()
      self.far = far
      memory = try FrontendMemory(byteCount: 1 << 20)
      translator = try FrontendTranslator(try FrontendConnection(near, timeout: .seconds(1)), memory, mappings)
      #expect(mappings.insert(mapping))
    }
  }

  @Test(
    "The answer to a miss covers the address, lies in the memory table and has the IOMMU's permission; without a mapping there is none (R104, R105)"
  )
  func answers() throws {
    let rig = try Rig()
    let update = try #require(
      rig.translator.update(for: IOTLBMessage(kind: .miss, address: 0x50_1234, permission: .read)))
    #expect(update.kind == .update && update.permission == .read)
    #expect(update.address <= 0x50_1234 && update.address + (update.size - 1) >= 0x50_1234)
    let region = try #require(rig.memory.regions.first)
    let target = update.frontendAddress - region.frontendAddress
    #expect(target + update.size <= region.size && target == 0x8000 + (update.address - 0x50_0000))
    #expect(rig.translator.update(for: IOTLBMessage(kind: .miss, address: 0x50_1234, permission: .write)) == nil)
    #expect(rig.translator.update(for: IOTLBMessage(kind: .miss, address: 0x60_0000, permission: .read)) == nil)
  }

  @Test(
    "An update or an invalidation from a back-end changes nothing (R124)",
    arguments: [IOTLBMessage.Kind.update, .invalidate])
  func wrongWay(kind: IOTLBMessage.Kind) throws {
    let rig = try Rig()
    var counts = rig.translator.counts
    rig.translator.take(
      .iotlb(
        IOTLBMessage(
          kind: kind, address: 0x50_0000, size: 0x4000, frontendAddress: FrontendMemory.frontendBase,
          permission: [.read, .write])),
      needsReply: false)
    // It is counted as what it is, for the checks of a back-end.
    counts.strays += 1
    #expect(rig.mappings.all == [rig.mapping] && rig.translator.counts == counts)
  }
}
