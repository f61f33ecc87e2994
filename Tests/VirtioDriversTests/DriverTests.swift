import DMA
import DriverDMA
import IOMMUInterface
import Testing
import Virtio
import VirtioBlock
import VirtioDrivers
import VirtioEntropy
import VirtioTestKit

private let cells = MapperKind.allCases.flatMap { kind in RingKind.all.map { (kind, $0) } }

@Suite("Drivers and devices move bytes through every mapper")
struct DriverTests {
  /// Segments of these sizes, each in a page of its own and off its start, filled with a pattern if they go out.
  private func segments(
    _ rig: DriverRig, _ sizes: [Int], _ direction: DMADirection, seed: Int = 0
  ) throws -> [GuestSegment] {
    var segments: [GuestSegment] = []
    var at = 0
    let all = pattern(sizes.reduce(0, +), seed: seed)
    for (n, size) in sizes.enumerated() {
      let guest = try rig.buffer(size, direction, skew: UInt64(n * 24))
      if direction == .toDevice { rig.fill(guest, Array(all[at..<at + size])) }
      segments.append(GuestSegment(guest, count: UInt32(size)))
      at += size
    }
    return segments
  }

  private func bytes(_ rig: DriverRig, _ segments: [GuestSegment]) -> [UInt8] {
    segments.flatMap { rig.bytes($0.address, Int($0.count)) }
  }

  @Test("A disk is written, read, flushed, zeroed, discarded and named", arguments: cells)
  func block(kind: MapperKind, ring: RingKind) throws {
    let (rig, disk, _, driver) = try DriverRig.withDisk(kind, ring.options())
    #expect(driver.capacity == 4096 && !driver.isReadOnly && driver.features.contains(.ringPacked) == ring.packed)
    let sizes = [512, 4096, 7, 1529, 2048]
    let total = sizes.reduce(0, +)
    for round in 0..<24 {
      let out = try segments(rig, sizes, .toDevice, seed: round)
      let sector = UInt64(round * 16)
      try driver.write(sector, from: out.span)
      #expect(try disk.bytes(Int(sector) * 512..<Int(sector) * 512 + total) == pattern(total, seed: round))
      let back = try segments(rig, sizes.reversed(), .fromDevice)
      try driver.read(sector, into: back.span)
      #expect(bytes(rig, back) == pattern(total, seed: round))
      if rig.mapper is PremappedMapper {
        rig.giveBack(out.enumerated().map { GuestAddress($1.address.rawValue - UInt64($0 * 24)) })
        rig.giveBack(back.enumerated().map { GuestAddress($1.address.rawValue - UInt64($0 * 24)) })
      } else {
        rig.giveBack([])
      }
    }
    try driver.flush()
    #expect(driver.maxWriteZeroesSectors > 0)
    try driver.writeZeroes([BlockRange(sector: 0, sectorCount: 2)].span)
    #expect(try disk.bytes(0..<1024) == [UInt8](repeating: 0, count: 1024))
    #expect(try disk.bytes(1024..<total) == Array(pattern(total, seed: 0)[1024...]))
    if driver.maxDiscardSectors > 0 { try driver.discard([BlockRange(sector: 16, sectorCount: 16)].span) }
    #expect(try driver.readID() == Array("a disk for drivers".utf8))
    #expect(driver.outstanding == 0 && rig.domain.faults.isEmpty)
    try driver.stop()
    checkEmpty(rig)
  }

  /// What a driver that has stopped leaves: nothing.
  private func checkEmpty(_ rig: DriverRig) {
    if let deferred = rig.mapper as? IOMMUMapper {
      #expect(throws: Never.self) { try deferred.flush() }
      #expect(rig.domain.mappings == 0)
    }
    if let bounce = rig.mapper as? BounceMapper { #expect(bounce.freeSlots == bounce.slotCount) }
    if let debugging = rig.mapper as? DebuggingMapper { #expect(debugging.finish().isEmpty) }
    #expect(rig.grants.granted.isEmpty)
  }

  @Test("Random bytes arrive, as many as the device says", arguments: cells)
  func entropy(kind: MapperKind, ring: RingKind) throws {
    let rig = try DriverRig(kind)
    let transport = rig.transport(EntropyDevice())
    let driver = try EntropyDriver(transport, on: rig.platform(), options: ring.options())
    var last: [UInt8] = []
    for _ in 0..<20 {
      let back = try segments(rig, [300, 1, 4000], .fromDevice)
      #expect(try driver.fill(back.span) == 4301)
      let now = bytes(rig, back)
      #expect(now != last && Set(now).count > 100)
      last = now
      rig.giveBack(back.enumerated().map { GuestAddress($1.address.rawValue - UInt64($0 * 24)) })
    }
    #expect(rig.domain.faults.isEmpty)
    try driver.stop()
    checkEmpty(rig)
  }

  @Test(
    "Requests under way at once complete each with its own data, and one that is waited for first loses none of the others",
    arguments: cells)
  func many(kind: MapperKind, ring: RingKind) throws {
    let (rig, disk, _, driver) = try DriverRig.withDisk(kind, ring.options())
    var tags: [RequestTag] = []
    for n in 0..<8 {
      let data = try segments(rig, [4096], .toDevice, seed: n)
      tags.append(try driver.submitWrite(UInt64(n * 8), from: data.span))
    }
    #expect(driver.outstanding == 8)
    #expect(try Set(disk.bytes(0..<8 * 4096)) == [0], "nothing is the device's before it is published")
    let third = try driver.complete(tags[3])
    #expect(third.tag == tags[3] && third.error == nil)
    var rest: Set<RequestTag> = []
    while let one = try driver.reap() {
      #expect(one.error == nil && rest.insert(one.tag).inserted)
    }
    #expect(rest == Set(tags).subtracting([tags[3]]))
    for n in 0..<8 { #expect(try disk.bytes(n * 4096..<n * 4096 + 4096) == pattern(4096, seed: n)) }
  }

  @Test(
    "A legacy device without the bit works by physical addresses, and is never asked for FEATURES_OK",
    arguments: [false, true])
  func legacy(indirect: Bool) throws {
    let rig = try DriverRig(.strict)
    let disk = try Disk()
    let transport = rig.transport(disk.device, offered: disk.device.features.subtracting([.version1, .ringPacked]))
    let driver = try BlockDriver(
      transport, on: rig.platform(), options: RingKind(packed: false, indirect: indirect).options())
    let data = try segments(rig, [512], .toDevice, seed: 5)
    try driver.write(1, from: data.span)
    #expect(try disk.bytes(512..<1024) == pattern(512, seed: 5))
    #expect(!transport.statuses.contains { $0.contains(.featuresOK) })
    let layout = try #require(transport.layouts[0])
    // Where the legacy interface looks for them.
    #expect(layout.driverArea.rawValue == layout.descriptorArea.rawValue + 16 * UInt64(layout.size))
    #expect(layout.deviceArea.rawValue % 4096 == 0)
  }

  @Test("Requests that make no sense are refused before the device hears of them")
  func senseless() throws {
    let (rig, _, transport, driver) = try DriverRig.withDisk(.direct, RingKind.all[0].options())
    let page = try rig.buffer(4096, .toDevice)
    #expect(throws: DriverError.request) { try driver.write(0, from: [GuestSegment(page, count: 511)].span) }
    #expect(throws: DriverError.request) { try driver.read(4095, into: [GuestSegment(page, count: 1024)].span) }
    #expect(throws: DriverError.request) { try driver.read(.max, into: [GuestSegment(page, count: 512)].span) }
    #expect(throws: DriverError.request) { try driver.read(0, into: [GuestSegment]().span) }
    #expect(throws: DriverError.request) { try driver.writeZeroes([BlockRange(sector: 4090, sectorCount: 7)].span) }
    #expect(throws: DriverError.segments(11, maximum: 10)) {
      try driver.read(0, into: [GuestSegment](repeating: GuestSegment(page, count: 512), count: 9).span)
    }
    #expect(transport.notifications == 0)
    let readOnly = try BlockDriver(
      rig.transport(Disk(readOnly: true).device), on: rig.platform(), options: RingKind.all[0].options())
    #expect(readOnly.isReadOnly)
    #expect(throws: DriverError.request) { try readOnly.write(0, from: [GuestSegment(page, count: 512)].span) }
  }

  @Test("A full ring is an error, and goes on when something completes", arguments: RingKind.all)
  func full(ring: RingKind) throws {
    let (rig, _, _, driver) = try DriverRig.withDisk(.strict, ring.options(size: 16, segments: 4))
    let page = try rig.buffer(512, .fromDevice)
    var count = 0
    #expect {
      while true {
        _ = try driver.submitRead(0, into: [GuestSegment(page, count: 512)].span)
        count += 1
      }
    } throws: { if case .queue(.full)? = $0 as? DriverError { true } else { false } }
    #expect(count == (ring.indirect ? 16 : 5))
    let mappings = rig.domain.mappings
    driver.publish()
    while try driver.reap() != nil { count -= 1 }
    #expect(count == 0 && rig.domain.mappings < mappings)
    try driver.read(0, into: [GuestSegment(page, count: 512)].span)
  }

  @Test("A queue that is reset gives back what the device had, and works again", arguments: RingKind.all)
  func queueReset(ring: RingKind) throws {
    let (rig, disk, transport, driver) = try DriverRig.withDisk(.strict, ring.options())
    let quiet = rig.domain.mappings
    transport.isDeaf = true
    let lost = try segments(rig, [512, 512], .fromDevice)
    let tag = try driver.submitRead(0, into: lost.span)
    #expect(throws: DriverError.timeout) { _ = try driver.complete(tag) }
    #expect(rig.domain.mappings == quiet + 2)
    try driver.restartQueue()
    #expect(rig.domain.mappings == quiet && driver.outstanding == 0)
    transport.isDeaf = false
    let data = try segments(rig, [512], .toDevice, seed: 3)
    try driver.write(7, from: data.span)
    #expect(try disk.bytes(3584..<4096) == pattern(512, seed: 3))
  }
}
