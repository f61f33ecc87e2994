import DMA
import DriverDMA
import HostIO
import NVMe
import PCI
import SocketMessages
import Synchronization
import Testing
import Virtio
import VirtioBlock
import VirtioDrivers
import VirtioEntropy
import VirtioPCI
import VirtioServing
import VirtioTestKit

@testable import VfioUser

@Suite("Doorbells in shared memory", .timeLimit(.minutes(10))) struct DoorbellTests {
  let folder: TemporaryFolder
  private static let (from, into) = (GuestAddress(0x80_0200), GuestAddress(0x90_0000))

  init() throws { folder = try TemporaryFolder() }

  private func disk(_ change: (inout VirtioPCIOptions) -> Void = { _ in }) throws -> VirtioRig {
    let image = try folder.file("disk.img", [UInt8](repeating: 0, count: 4 << 20))
    return try VirtioRig(BlockDevice(BlockOptions(path: image)), in: folder, doorbells: .shared, change)
  }

  private func tryOut(_ driver: BlockDriver, _ rig: VirtioRig, seed: UInt8 = 1) throws {
    let pattern = (0..<8192).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8) &+ seed }
    rig.put(pattern, at: Self.from)
    rig.put([UInt8](repeating: 0xee, count: 8192), at: Self.into)
    try driver.write(16, from: [GuestSegment(Self.from, count: 8192)].span)
    try driver.read(16, into: [GuestSegment(Self.into, count: 8192)].span)
    #expect(rig.bytes(8192, at: Self.into) == pattern)
  }

  @Test(
    "A disk whose notifications are stores into memory reads back what was written, on split and packed rings, with wide notifications and narrow ones; a reset loses none",
    arguments: [[], .ringPacked, .notificationData, [.ringPacked, .notificationData]] as [Features])
  func block(_ withheld: Features) throws {
    let rig = try disk()
    let guest = try VirtioGuest(rig, isTranslated: true)
    let place = try #require(try guest.client.mapRegion(4))
    #expect(place.map.offset % 4096 == 0 && place.map.size == 4096 && place.info.size >= place.map.offset + 4096)
    #expect(try guest.client.mapRegion(0) == nil && guest.client.mapRegion(1) == nil)
    for seed in 1...3 as ClosedRange<UInt8> {
      let driver = try BlockDriver(guest.transport, on: guest.platform, options: guest.options(withholding: withheld))
      try tryOut(driver, rig, seed: seed)
      try driver.stop()
    }
    let client = try #require(rig.report(guest).client)
    #expect(client.sharesDoorbells && client.doorbells >= 6 && client.refusals == 0)
  }

  @Test("Two queues' notifications do not cover each other")
  func severalQueues() throws {
    let rung = Mutex<[Int: Int]>([:])
    let page = try DoorbellPage(DoorbellArea(bar: 4, offset: 0x3000, count: 300)) { cell, value in
      rung.withLock { $0[cell] = Int(value) }
    }
    let client = try MappedDoorbells(
      bar: 4, RegionInfo(index: 4), SparseMap(offset: page.area.offset, size: page.area.byteCount),
      FileDescriptor.duplicating(page.descriptor))
    #expect(!page.look())
    for cell in [0, 1, 255, 299] { #expect(client.store(4, 0x3000 + 4 * UInt64(cell), 4, UInt32(7 * cell))) }
    #expect(page.look() && rung.withLock { $0 } == [0: 0, 1: 7, 255: 7 * 255, 299: 7 * 299])
    #expect(!page.look())
  }

  @Test("What was left before the first register is brought before it, whichever is found first")
  func order() throws {
    let rung = Mutex<[Int]>([])
    let page = try DoorbellPage(DoorbellArea(bar: 0, offset: 0x1000, count: 8)) { cell, _ in
      rung.withLock { $0.append(cell) }
    }
    let client = try MappedDoorbells(
      bar: 0, RegionInfo(index: 0), SparseMap(offset: 0x1000, size: 4096),
      FileDescriptor.duplicating(page.descriptor))
    for cell in [5, 3, 0] as [UInt64] { #expect(client.store(0, 0x1000 + 4 * cell, 4, 1)) }
    #expect(page.look() && rung.withLock { $0 } == [5, 3, 0])
  }

  @Test("NVMe works with doorbells in memory, and a queue that is made anew begins anew")
  func nvme() throws {
    let rig = try Rig(doorbells: .shared)
    for _ in 0..<3 {
      let client = try Client(path: rig.path)
      try client.command(.reset)
      #expect(try client.mapRegion(0) != nil)
      for seed in 1...2 as ClosedRange<UInt8> {
        let driver = try NVMeOverVfioUserTests.start(rig, client)
        let pattern = [UInt8](repeating: seed, count: 4096)
        #expect(rig.memory.copy(pattern.span, to: Self.from) == 4096)
        for block in 0..<40 as Range<UInt64> {
          try driver.write(8 * block, from: [GuestSegment(Self.from, count: 4096)].span)
        }
        try driver.read(8 * 39, into: [GuestSegment(Self.into, count: 4096)].span)
        var back = [UInt8](repeating: 0, count: 4096)
        var span = back.mutableSpan
        #expect(rig.memory.copy(from: Self.into, into: &span) == 4096 && back == pattern)
        try driver.stop()
      }
      #expect(rig.server.statistics.client.map { $0.doorbells > 80 } == true)
      client.close()
      #expect(eventually { !rig.server.statistics.isConnected })
    }
  }

  @Test(
    "A client that scribbles over the page, or wants to cut it short or seal it, stops nothing, and rings nothing for the next client"
  )
  func hostile() throws {
    let rig = try disk()
    let guest = try VirtioGuest(rig, isTranslated: true)
    #expect(try guest.client.mapRegion(4) != nil)
    let old = try #require(guest.client.doorbells)
    #expect(throws: HostError.self) { try old.file.resize(to: 0) }
    #expect(throws: HostError.self) { try old.file.resize(to: 1 << 20) }
    #expect(throws: HostError.self) { try old.file.add(.write) }
    var numbers = SeededGenerator(33)
    func scribble() {
      let bytes = (0..<4096).map { _ in UInt8(truncatingIfNeeded: numbers.next()) }
      #expect(old.mapping.copy(bytes.span, to: 0) == 4096)
    }
    let driver = try BlockDriver(guest.transport, on: guest.platform, options: guest.options())
    for seed in 1...20 as ClosedRange<UInt8> {
      scribble()
      try tryOut(driver, rig, seed: seed)
    }
    try driver.stop()
    scribble()
    guest.client.close()
    #expect(eventually { !rig.server.statistics.isConnected })
    let next = try VirtioGuest(rig, isTranslated: true)
    #expect(try next.client.mapRegion(4) != nil)
    let mine = try #require(next.client.doorbells)
    #expect(
      try FileIdentity(of: mine.file.descriptor.rawValue).inode != FileIdentity(of: old.file.descriptor.rawValue).inode)
    scribble()
    let after = try BlockDriver(next.transport, on: next.platform, options: next.options())
    try tryOut(after, rig)
    try after.stop()
    #expect(rig.report(next).failedSessions == 0)
  }

  @Test("Without doorbells the watch comes to rest, and one is found all the same")
  func rests() throws {
    let found = try EventFD()
    let page = try DoorbellPage(DoorbellArea(bar: 0, offset: 0, count: 4)) { _, _ in found.signal() }
    let client = try MappedDoorbells(
      bar: 0, RegionInfo(index: 0), SparseMap(offset: 0, size: 4096),
      FileDescriptor.duplicating(page.descriptor))
    let watch = try DoorbellWatch(page)
    defer { watch.end() }
    // After a while it has come to rest, and from then on time alone bounds its looks.
    let rests = eventually {
      let (start, before) = (ContinuousClock.now, page.looks)
      guard eventually({ page.looks >= before + 20 }) else { return false }
      return ContinuousClock.now - start >= DoorbellPolicy.longestRest * 18
    }
    #expect(rests)
    #expect(client.store(0, 8, 4, 5))
    #expect(try found.wait(timeout: .seconds(10)))
  }

  @Test("Where doorbells are messages no region can be mapped")
  func messages() throws {
    let image = try folder.file("disk.img", [UInt8](repeating: 0, count: 4 << 20))
    let rig = try VirtioRig(BlockDevice(BlockOptions(path: image)), in: folder)
    let guest = try VirtioGuest(rig, isTranslated: true)
    for index in 0..<9 as Range<UInt32> { #expect(try guest.client.mapRegion(index) == nil) }
    #expect(rig.report(guest).client?.sharesDoorbells == false)
  }
}
