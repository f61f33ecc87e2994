import DMA
import DriverDMA
import IOMMUInterface
import Testing
import Virtio
import VirtioDrivers
import VirtioEntropy
import VirtioTestKit

@Suite("What a driver does with its mappings")
struct MappingRuleTests {
  @Test("A segment longer than the mapper takes in one piece is cut, and arrives whole (R176)", arguments: RingKind.all)
  func maximum(ring: RingKind) throws {
    let rig = try DriverRig(.direct)
    let disk = try Disk()
    // Eight slots of 2 KiB: nothing may be longer than 16 KiB.
    let bounce = try BounceMapper(over: DirectMapper(rig.shared), poolSize: 1 << 20, slotsPerMapping: 8)
    let recorder = RecordingMapper(bounce)
    let platform = DriverPlatform(pages: rig.pages, mapper: recorder)
    let driver = try BlockDriver(rig.transport(disk.device), on: platform, options: ring.options(size: 64, segments: 8))
    recorder.maps = []
    let guest = try rig.buffer(100_000 / 512 * 512, .toDevice, skew: 100)
    let count = 100_000 / 512 * 512
    rig.fill(guest, pattern(count))
    try driver.write(5, from: [GuestSegment(guest, count: UInt32(count))].span)
    #expect(try disk.bytes(2560..<2560 + count) == pattern(count))
    #expect(recorder.maps.map(\.count) == [16384, 16384, 16384, 16384, 16384, 16384, UInt64(count - 6 * 16384)])
    #expect(recorder.everything.allSatisfy { $0.isCoherent || $0.count <= bounce.maxMappingSize })
    // One more piece than a request may have.
    let long = try rig.buffer(9 * 16384, .toDevice)
    #expect(throws: DriverError.segments(11, maximum: 10)) {
      try driver.write(0, from: [GuestSegment(long, count: 9 * 16384)].span)
    }
  }

  @Test("A queue is made small enough for its tables to fit into one mapping (R176)")
  func tables() throws {
    let rig = try DriverRig(.direct)
    let bounce = try BounceMapper(over: DirectMapper(rig.shared), poolSize: 1 << 20, slotsPerMapping: 2)
    let transport = rig.transport(try Disk().device)
    let driver = try BlockDriver(
      transport, on: DriverPlatform(pages: rig.pages, mapper: bounce), options: DriverOptions())
    let size = try #require(transport.layouts[0]).size
    #expect(Int(size) * driver.maxSegments * 16 < 4096 && size >= 8)
    let tiny = try BounceMapper(over: DirectMapper(rig.shared), poolSize: 1 << 20, slotSize: 64, slotsPerMapping: 1)
    #expect(throws: DriverError.self) {
      _ = try BlockDriver(rig.transport(try Disk().device), on: DriverPlatform(pages: rig.pages, mapper: tiny))
    }
  }

  @Test(
    "Each buffer is mapped in its descriptor's direction, indirect tables to the device, rings both ways (R177)",
    arguments: RingKind.all)
  func directions(ring: RingKind) throws {
    let rig = try DriverRig(.strict)
    let recorder = RecordingMapper(rig.mapper)
    let platform = DriverPlatform(pages: rig.pages, mapper: recorder)
    let disk = try Disk()
    let transport = rig.transport(disk.device)
    let driver = try BlockDriver(transport, on: platform, options: ring.options())
    // The rings; tables if there are any, headers; statuses.
    #expect(recorder.everything.filter(\.isCoherent).map(\.direction) == [.bidirectional])
    #expect(
      recorder.maps.map(\.direction)
        == (ring.indirect ? [.toDevice, .toDevice, .fromDevice] : [.toDevice, .fromDevice]))
    recorder.maps = []
    let guest = try rig.buffer(4096, .toDevice)
    try driver.write(0, from: [GuestSegment(guest, count: 1024), GuestSegment(guest, count: 512)].span)
    #expect(recorder.maps.map(\.direction) == [.toDevice, .toDevice])
    recorder.maps = []
    try driver.read(0, into: [GuestSegment(guest, count: 1024)].span)
    #expect(recorder.maps.map(\.direction) == [.fromDevice])
    recorder.maps = []
    _ = try driver.readID()
    try driver.flush()
    #expect(recorder.maps.isEmpty)
    // The IOMMU says the same, and the device never met a fault: no permission is missing, and none is there for
    // nothing.
    #expect(Set(rig.iommu.maps.map(\.permissions)) == [.read, .write, .readWrite])
    #expect(rig.iommu.maps.filter { $0.permissions == .readWrite }.count == 1)
    #expect(rig.domain.faults.isEmpty)
  }

  @Test(
    "A request that cannot be mapped to its end leaves nothing mapped, nothing in the ring, and its memory as it was (R178)",
    arguments: RingKind.all)
  func unwinding(ring: RingKind) throws {
    let (rig, _, _, driver) = try DriverRig.withDisk(.strict, ring.options())
    let guest = try rig.buffer(4096, .fromDevice)
    let pieces = (0..<6).map { GuestSegment(GuestAddress(guest.rawValue + UInt64($0 * 512)), count: 512) }
    let (mappings, addresses, free) = (rig.domain.mappings, rig.addresses.freeBytes, driver.free)
    for left in 0..<6 {
      rig.iommu.mapsLeft = left
      #expect(throws: DriverError.self) { _ = try driver.submitRead(0, into: pieces.span) }
      #expect(rig.domain.mappings == mappings && rig.addresses.freeBytes == addresses)
      #expect(driver.free == free && driver.outstanding == 0)
    }
    rig.iommu.mapsLeft = nil
    try driver.read(0, into: pieces.span)
    #expect(rig.domain.mappings == mappings)
  }

  @Test("A pool that is used up half-way through a request gives back the first half (R178)", arguments: RingKind.all)
  func unwindingBounce(ring: RingKind) throws {
    let rig = try DriverRig(.bounce, poolSize: 64 << 10)
    let mapper = try #require(rig.mapper as? BounceMapper)
    let driver = try BlockDriver(
      rig.transport(Disk().device), on: rig.platform(), options: ring.options(size: 16, segments: 8))
    let free = mapper.freeSlots
    let guest = try rig.buffer(64 << 10, .fromDevice)
    rig.fill(guest, pattern(64 << 10))
    let pieces = (0..<8).map { GuestSegment(GuestAddress(guest.rawValue + UInt64($0 * 8192)), count: 8192) }
    #expect(throws: DriverError.dma(.outOfSlots(8192))) { try driver.read(0, into: pieces.span) }
    #expect(mapper.freeSlots == free)
    #expect(rig.bytes(guest, 64 << 10) == pattern(64 << 10))
    try driver.read(0, into: [pieces[0]].span)
  }

  @Test(
    "A buffer stays mapped while the device has it, through time-outs too, until it is used (R179)",
    arguments: RingKind.all)
  func untilUsed(ring: RingKind) throws {
    let (rig, disk, transport, driver) = try DriverRig.withDisk(.strict, ring.options())
    let (mappings, unmaps) = (rig.domain.mappings, rig.iommu.unmaps)
    let guest = try rig.buffer(512, .toDevice)
    rig.fill(guest, pattern(512))
    transport.isDeaf = true
    let tag = try driver.submitWrite(0, from: [GuestSegment(guest, count: 512)].span)
    for _ in 0..<3 { #expect(throws: DriverError.timeout) { _ = try driver.complete(tag) } }
    #expect(rig.domain.mappings == mappings + 1 && rig.iommu.unmaps == unmaps)
    transport.isDeaf = false
    transport.harness?.kick(0)
    #expect(rig.iommu.unmaps == unmaps, "used is not yet reaped")
    #expect(try driver.complete(tag).error == nil)
    #expect(rig.domain.mappings == mappings && rig.iommu.unmaps == unmaps + 1)
    #expect(try disk.bytes(0..<512) == pattern(512))
  }

  @Test(
    "Stopping resets the device first and unmaps afterwards, what it still had included (R179)",
    arguments: [MapperKind.strict, .grants, .bounce, .debugging])
  func stopping(kind: MapperKind) throws {
    let rig = try DriverRig(kind)
    let recorder = RecordingMapper(rig.mapper)
    let transport = rig.transport(EntropyDevice())
    let driver = try EntropyDriver(
      transport, on: DriverPlatform(pages: rig.pages, mapper: recorder), options: RingKind.all[3].options())
    transport.isDeaf = true
    let guest = try rig.buffer(64, .fromDevice)
    let free = rig.pages.freeBytes
    let tag = try driver.submit([GuestSegment(guest, count: 64)].span)
    #expect(throws: DriverError.timeout) { _ = try driver.complete(tag) }
    recorder.beforeUnmap = { #expect(transport.statuses.last == [] && transport.layouts.isEmpty) }
    try driver.stop()
    #expect(recorder.mapped.isEmpty && rig.pages.freeBytes >= free)
    #expect(throws: DriverError.stopped) { _ = try driver.submit([GuestSegment(guest, count: 64)].span) }
    try driver.stop()
  }

  @Test("A device that never finishes its reset keeps every mapping and page for ever (R179)")
  func hungReset() throws {
    let rig = try DriverRig(.strict)
    let disk = try Disk()
    let transport = rig.transport(disk.device)
    var driver: BlockDriver? = try BlockDriver(transport, on: rig.platform(), options: RingKind.all[1].options())
    transport.isDeaf = true
    let guest = try rig.buffer(512, .toDevice)
    _ = try driver?.submitWrite(0, from: [GuestSegment(guest, count: 512)].span)
    driver?.publish()
    let (mappings, free) = (rig.domain.mappings, rig.pages.freeBytes)
    transport.hangsInReset = true
    #expect { try driver?.stop() } throws: { if case .reset? = $0 as? DriverError { true } else { false } }
    driver = nil
    #expect(rig.domain.mappings == mappings && rig.pages.freeBytes == free && rig.iommu.unmaps == 0)
  }

  @Test(
    "A driver that goes away without a word takes its device and its memory with it (R179)", arguments: RingKind.all)
  func goingAway(ring: RingKind) throws {
    let rig = try DriverRig(.strict)
    let free = rig.pages.freeBytes
    let disk = try Disk()
    let transport = rig.transport(disk.device)
    do {
      let driver = try BlockDriver(transport, on: rig.platform(), options: ring.options())
      try driver.flush()
      #expect(rig.pages.freeBytes < free)
    }
    #expect(transport.status.isEmpty && rig.domain.mappings == 0 && rig.pages.freeBytes == free)
  }

  @Test(
    "A grant that the device still uses ends the driver's trust in it: the request fails and nothing more is mapped (R180)",
    arguments: RingKind.all)
  func grantInUse(ring: RingKind) throws {
    let rig = try DriverRig(.grants)
    let transport = rig.transport(EntropyDevice())
    let driver = try EntropyDriver(transport, on: rig.platform(), options: ring.options())
    let guest = try rig.buffer(64, .fromDevice)
    let layout = try #require(transport.layouts[0])
    #expect(
      layout.descriptorArea.rawValue >> 63 == 1 && layout.driverArea.rawValue >> 63 == 1
        && layout.deviceArea.rawValue >> 63 == 1)
    transport.afterNotify = { rig.grants.isInUse = true }
    #expect { try driver.fill([GuestSegment(guest, count: 64)].span) } throws: {
      if case .dma(.stillInUse)? = $0 as? DriverError { true } else { false }
    }
    rig.grants.isInUse = false
    #expect(throws: DriverError.dma(.broken)) { _ = try driver.fill([GuestSegment(guest, count: 64)].span) }
  }

  @Test("With premapped buffers a request makes no mapping at all", arguments: RingKind.all)
  func noMapPerRequest(ring: RingKind) throws {
    let rig = try DriverRig(.premapped)
    let pool = try #require(rig.mapper as? PremappedMapper)
    let disk = try Disk()
    let driver = try BlockDriver(rig.transport(disk.device), on: rig.platform(), options: ring.options())
    let (maps, unmaps, inner) = (rig.iommu.maps.count, rig.iommu.unmaps, pool.innerMaps)
    let out = try rig.buffer(4096, .toDevice)
    let back = try rig.buffer(4096, .fromDevice)
    for n in 0..<200 {
      rig.fill(out, pattern(4096, seed: n))
      try driver.write(UInt64(n % 8), from: [GuestSegment(out, count: 4096)].span)
      try driver.read(UInt64(n % 8), into: [GuestSegment(back, count: 4096)].span)
      #expect(rig.bytes(back, 4096) == pattern(4096, seed: n))
    }
    #expect(rig.iommu.maps.count == maps && rig.iommu.unmaps == unmaps && pool.innerMaps == inner)
  }
}

/// Writes down what goes through it.
final class RecordingMapper: DMAMapper {
  private let inner: any DMAMapper
  /// Streaming ranges, in the order they were mapped; the test may empty it.
  var maps: [MappedRange] = []
  /// Everything that was ever mapped or allocated.
  private(set) var everything: [MappedRange] = []
  /// What is mapped or allocated now.
  private(set) var mapped: Set<MappedRange> = []
  var beforeUnmap: () -> Void = {}

  init(_ inner: any DMAMapper) { self.inner = inner }

  var memory: GuestMemory { inner.memory }
  var maxMappingSize: UInt64 { inner.maxMappingSize }

  func allocateRange(_ count: UInt64, alignment: UInt64) throws(DMAError) -> MappedRange {
    let range = try inner.allocateRange(count, alignment: alignment)
    everything.append(range)
    mapped.insert(range)
    return range
  }

  func mapRange(_ guest: GuestAddress, count: UInt64, _ direction: DMADirection) throws(DMAError) -> MappedRange {
    let range = try inner.mapRange(guest, count: count, direction)
    maps.append(range)
    everything.append(range)
    mapped.insert(range)
    return range
  }

  func unmapRange(_ range: MappedRange) throws(DMAError) {
    beforeUnmap()
    mapped.remove(range)
    try inner.unmapRange(range)
  }

  func synchronizeForDevice(_ range: MappedRange, at offset: UInt64, count: UInt64) {
    inner.synchronizeForDevice(range, at: offset, count: count)
  }
  func synchronizeForDriver(_ range: MappedRange, at offset: UInt64, count: UInt64) {
    inner.synchronizeForDriver(range, at: offset, count: count)
  }
}
