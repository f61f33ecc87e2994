import DMA
import HostIO
import Testing
import Virtio
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

@Suite("A connection that one device after the other lives on", .timeLimit(.minutes(10))) struct OwnerTests {
  @Test(
    "SET_OWNER on a connection that had an owner begins anew: other memory at the same addresses, other features, a ring from its beginning",
    arguments: [false, true])
  func secondLife(_ platform: Bool) throws {
    let first = try RawFrontend()
    let memory = try MemoryFile(name: "guest", size: RawFrontend.memorySize)
    let mapping = try HostMapping(
      descriptor: memory.descriptor.rawValue, offset: 0, byteCount: Int(RawFrontend.memorySize))
    let features: Features = platform ? [.version1, .accessPlatform] : .version1
    try first.negotiate(features)
    try first.must(.addMemoryRegion(first.region), [first.memory.descriptor.rawValue])
    if platform {
      // Rings and buffers are where the front-end's addresses say, a page each, told at once.
      for page in 0..<16 as Range<UInt64> {
        try first.must(.iotlb(first.update(RawFrontend.iova + page << 12)))
      }
    }
    let base = platform ? RawFrontend.iova : RawFrontend.frontend
    try first.startRing(base: base)
    #expect(try first.read(sector: 1, base: platform ? RawFrontend.iova : RawFrontend.guest))
    #expect(try first.ask(.getStatus) == .value(0))
    try first.must(.setStatus(15))

    // As QEMU does after device_del and device_add: the ring was stopped, memory was not taken back, and the next
    // device's protocol features and channel come before its owner.
    try first.stopRing()
    let before = first.peek(Int(RawFrontend.memorySize), 0)
    _ = try first.ask(.getFeatures)
    _ = try first.ask(.getProtocolFeatures)
    try first.send(.setProtocolFeatures(RawFrontend.all))
    try first.openChannel()
    try first.must(.setOwner)
    #expect(try first.ask(.getStatus) == .value(0))
    try first.must(.setFeatures(Features.version1.word | 1 << 30))
    try first.must(.addMemoryRegion(first.region), [memory.descriptor.rawValue])
    #expect(first.server.statistics.memoryBytes == RawFrontend.memorySize)
    #expect(first.server.statistics.iotlb.reachableBytes == 0)
    // A ring was described and started, and in the second life it was not.
    #expect(try first.stopRing() == RawFrontend.stopped(at: 0))
    RawFrontend.prepareRead(mapping, sector: 2, at: 0)
    try first.startRing()
    first.kick.signal()
    #expect(eventually(on: first.call) { mapping.bytes(1, at: RawFrontend.Place.status) == [0] })
    #expect(mapping.bytes(512, at: RawFrontend.Place.data) == Array(first.disk.contents[1024..<1536]))
    try first.stopRing()
    #expect(
      first.peek(Int(RawFrontend.memorySize), 0) == before, "the memory of the first life was touched in the second")
  }

  @Test("The first SET_OWNER changes nothing, wherever it comes")
  func firstOwner() throws {
    let frontend = try RawFrontend()
    try frontend.send(.setProtocolFeatures(RawFrontend.all))
    try frontend.openChannel()
    try frontend.must(.setFeatures(Features.version1.word | 1 << 30))
    try frontend.share()
    try frontend.startRing()
    #expect(try frontend.read(sector: 1))
    try frontend.must(.setOwner)
    #expect(try frontend.read(sector: 2))
  }

  @Test("A log, in-flight memory and a ring under way end with the life they were for")
  func everythingEnds() throws {
    let frontend = try RawFrontend.sharing(word: 1 << 30 | 1 << 26)
    let bits = try frontend.startLog(bytes: 1 << 16)
    let record = try RawFrontend.Record(of: frontend)
    try frontend.install(record)
    try frontend.startRing()
    #expect(try frontend.read(sector: 1))
    #expect(record.usedIndex == 1)
    // Without a stop: the ring runs.
    try frontend.must(.setOwner)
    #expect(
      frontend.server.statistics.queues.allSatisfy { !$0.isRunning } && frontend.server.statistics.memoryBytes == 0)
    _ = bits.copy([UInt8](repeating: 0, count: 1 << 16).span, to: 0)
    try frontend.must(.setFeatures(Features.version1.word | 1 << 30 | 1 << 26))
    try frontend.share()
    try frontend.startRing(at: 1)
    #expect(try frontend.read(sector: 2))
    try frontend.stopRing()
    #expect(record.usedIndex == 1 && bits.bytes(1 << 16).allSatisfy { $0 == 0 })
  }
}
