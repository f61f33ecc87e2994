import DMA
import DriverDMA
import IOMMUInterface
import Testing
import VirtioTestKit

@Suite("Mappers that run out, are refused or are misused")
struct MapperFailureTests {
  // MARK: IOMMU

  @Test("With the deferred flush a device address comes again only after the IOMMU has forgotten it")
  func deferredReuse() throws {
    let rig = try DriverRig(.deferred, batch: 4)
    let eye = DeviceEye(space: rig.domain)
    let mapper = try #require(rig.mapper as? IOMMUMapper)
    let guest = try rig.buffer(4096, .toDevice)
    rig.fill(guest, pattern(16))
    var used: Set<UInt64> = []
    for n in 1...3 {
      let range = try mapper.mapRange(guest, count: 4096, .toDevice)
      #expect(used.insert(range.address.rawValue).inserted)
      try mapper.unmapRange(range)
      #expect(mapper.waitingCount == n && rig.iommu.flushes == 0)
      #expect(eye.read(range.address, 16) == pattern(16), "the IOMMU remembers it still")
    }
    let fourth = try mapper.mapRange(guest, count: 4096, .toDevice)
    #expect(used.insert(fourth.address.rawValue).inserted)
    try mapper.unmapRange(fourth)
    #expect(rig.iommu.flushes == 1 && mapper.waitingCount == 0)
    for address in used { #expect(eye.read(DMAAddress(address), 1) == nil) }
    #expect(used.contains(try mapper.mapRange(guest, count: 4096, .toDevice).address.rawValue))
  }

  @Test("Addresses that only wait for a flush are no reason to fail")
  func flushForRoom() throws {
    let rig = try DriverRig(.strict)
    let addresses = IOVAAllocator(aperture: 0x1000...0x2fff)
    let mapper = IOMMUMapper(rig.iommu, addresses: addresses, pages: rig.pages, flush: .deferred(batch: 1000))
    let guest = try rig.buffer(4096, .toDevice)
    for _ in 0..<10 { try mapper.unmapRange(mapper.mapRange(guest, count: 4096, .toDevice)) }
    let a = try mapper.mapRange(guest, count: 4096, .toDevice)
    _ = try mapper.mapRange(guest, count: 4096, .toDevice)
    #expect(throws: DMAError.outOfAddresses(4096)) { _ = try mapper.mapRange(guest, count: 4096, .toDevice) }
    try mapper.unmapRange(a)
    _ = try mapper.mapRange(guest, count: 4096, .toDevice)
  }

  @Test(
    "A mapping that the IOMMU refuses leaves its addresses free; an unmapping that it refuses keeps them from everybody"
  )
  func refusals() throws {
    let rig = try DriverRig(.strict)
    let mapper = try #require(rig.mapper as? IOMMUMapper)
    let free = rig.addresses.freeBytes
    let guest = try rig.buffer(4096, .toDevice)
    rig.iommu.mapsLeft = 0
    #expect(throws: DMAError.self) { _ = try mapper.mapRange(guest, count: 4096, .toDevice) }
    let pagesFree = rig.pages.freeBytes
    #expect(throws: DMAError.self) { _ = try mapper.allocateRange(4096, alignment: 4096) }
    #expect(rig.addresses.freeBytes == free && rig.pages.freeBytes == pagesFree)
    rig.iommu.mapsLeft = nil
    let range = try mapper.mapRange(guest, count: 4096, .toDevice)
    rig.iommu.refusesUnmap = true
    #expect(throws: DMAError.iommu(range.address)) { try mapper.unmapRange(range) }
    #expect(rig.addresses.freeBytes == free - 4096 && mapper.lostBytes == 4096)
    rig.iommu.refusesUnmap = false
    let other = try mapper.mapRange(guest, count: 4096, .toDevice)
    #expect(other.address != range.address)
    rig.iommu.refusesFlush = true
    #expect(throws: DMAError.self) { try mapper.unmapRange(other) }
    #expect(mapper.lostBytes == 8192 && rig.addresses.freeBytes == free - 8192)
  }

  @Test("Two buffers in one page get a window each, with its own permissions")
  func sharedPage() throws {
    let rig = try DriverRig(.strict)
    let eye = DeviceEye(space: rig.domain)
    let page = try rig.buffer(4096, .toDevice)
    let a = try rig.mapper.mapRange(page, count: 100, .toDevice)
    let b = try rig.mapper.mapRange(GuestAddress(page.rawValue + 100), count: 100, .fromDevice)
    #expect(a.address.rawValue & ~4095 != b.address.rawValue & ~4095)
    #expect(b.address.rawValue & 4095 == 100)
    #expect(!eye.write([1], at: a.address) && eye.write([1], at: b.address))
  }

  // MARK: Bounce pool

  @Test("A pool without room is an error at once, and room comes back with each unmap")
  func exhaustion() throws {
    let rig = try DriverRig(.bounce, poolSize: 64 << 10)
    let mapper = try #require(rig.mapper as? BounceMapper)
    #expect(mapper.slotCount == 32 && mapper.maxMappingSize == 64 << 10)
    let guest = try rig.buffer(64 << 10, .toDevice)
    var ranges: [MappedRange] = []
    for _ in 0..<16 { ranges.append(try mapper.mapRange(guest, count: 2049, .toDevice)) }
    #expect(mapper.freeSlots == 0)
    #expect(throws: DMAError.outOfSlots(1)) { _ = try mapper.mapRange(guest, count: 1, .toDevice) }
    #expect(throws: DMAError.outOfSlots(4096)) { _ = try mapper.allocateRange(4096, alignment: 4096) }
    // Every other one: enough slots, and no two mappings' worth together.
    for i in stride(from: 0, to: 16, by: 2) { try mapper.unmapRange(ranges[i]) }
    #expect(mapper.freeSlots == 16)
    #expect(throws: DMAError.outOfSlots(4097)) { _ = try mapper.mapRange(guest, count: 4097, .toDevice) }
    #expect(throws: DMAError.notMapped(ranges[0].address)) { try mapper.unmapRange(ranges[0]) }
    for i in stride(from: 1, to: 16, by: 2) { try mapper.unmapRange(ranges[i]) }
    _ = try mapper.mapRange(guest, count: 64 << 10, .toDevice)
  }

  @Test("A slot shows a device nothing of what another request left in it")
  func noLeftovers() throws {
    let rig = try DriverRig(.bounce, poolSize: 64 << 10)
    let eye = DeviceEye(space: rig.domain)
    let guest = try rig.buffer(2048, .fromDevice)
    rig.fill(guest, pattern(2048))
    let secret = try rig.mapper.mapRange(guest, count: 2048, .toDevice)
    try rig.mapper.unmapRange(secret)
    let other = try rig.buffer(2048, .fromDevice)
    let range = try rig.mapper.mapRange(other, count: 2048, .fromDevice)
    #expect(range.address == secret.address)
    #expect(eye.read(range.address, 2048) == [UInt8](repeating: 0, count: 2048))
  }

  @Test("Memory that is not there cannot be mapped through a pool, and costs no slot")
  func missing() throws {
    let rig = try DriverRig(.bounce)
    let mapper = try #require(rig.mapper as? BounceMapper)
    let free = mapper.freeSlots
    let nowhere = GuestAddress(UInt64(DriverRig.size) - 100)
    #expect(throws: DMAError.missing(nowhere)) { _ = try mapper.mapRange(nowhere, count: 200, .toDevice) }
    #expect(mapper.freeSlots == free)
  }

  // MARK: Grants

  @Test(
    "Grants carry bit 63, are read-only to the device where it only reads, and a page still in use breaks the mapper (R180)"
  )
  func grants() throws {
    let rig = try DriverRig(.grants)
    let eye = DeviceEye(space: rig.domain)
    let mapper = try #require(rig.mapper as? GrantMapper)
    let guest = try rig.buffer(10000, .toDevice, skew: 3)
    rig.fill(guest, pattern(9000))
    let out = try mapper.mapRange(guest, count: 9000, .toDevice)
    #expect(out.address.rawValue >> 63 == 1 && out.address.rawValue & 4095 == 3)
    #expect(rig.grants.granted.values.allSatisfy { $0 } && rig.grants.granted.count == 3)
    #expect(eye.read(out.address, 9000) == pattern(9000) && !eye.write([1], at: out.address))
    let back = try mapper.mapRange(guest, count: 10, .fromDevice)
    #expect(rig.grants.granted.values.count { !$0 } == 1 && eye.write([1], at: back.address))
    try mapper.unmapRange(back)
    rig.grants.isInUse = true
    #expect(throws: DMAError.stillInUse(out.address)) { try mapper.unmapRange(out) }
    #expect(mapper.isBroken)
    rig.grants.isInUse = false
    #expect(throws: DMAError.broken) { _ = try mapper.mapRange(guest, count: 10, .toDevice) }
    #expect(throws: DMAError.broken) { _ = try mapper.allocateRange(4096, alignment: 4096) }
  }

  @Test("A device with fewer than 64 address bits cannot be given grants (R180)")
  func grantAddressBits() throws {
    let rig = try DriverRig(.grants)
    #expect(throws: DMAError.addressBits(48, needed: 64)) {
      _ = try GrantMapper(rig.grants, pages: rig.pages, addressBits: 48)
    }
  }

  @Test("A full grant table is an error, and coherent memory goes back")
  func fullGrants() throws {
    let rig = try DriverRig(.grants)
    rig.grants.isFull = true
    let free = rig.pages.freeBytes
    #expect(throws: DMAError.outOfGrants(2)) { _ = try rig.mapper.allocateRange(8192, alignment: 4096) }
    #expect(rig.pages.freeBytes == free)
  }

  // MARK: Premapped pool

  @Test(
    "Premapped buffers are handed out without a word to the IOMMU, each direction from its own pool",
    arguments: [MapperKind.premapped, .premappedBounce])
  func premapped(kind: MapperKind) throws {
    let rig = try DriverRig(kind)
    let mapper = try #require(rig.mapper as? PremappedMapper)
    let (maps, unmaps, inner) = (rig.iommu.maps.count, rig.iommu.unmaps, mapper.innerMaps)
    var seen: Set<GuestAddress> = []
    for _ in 0..<64 {
      let buffer = try #require(mapper.take(.toDevice))
      #expect(seen.insert(buffer).inserted)
      let range = try mapper.mapRange(buffer, count: 8192, .toDevice)
      try mapper.unmapRange(range)
    }
    #expect(mapper.take(.toDevice) == nil)
    let buffer = try #require(seen.first)
    #expect(throws: DMAError.direction(buffer)) { _ = try mapper.mapRange(buffer, count: 10, .fromDevice) }
    #expect(throws: DMAError.tooLarge(8192, maximum: 8182)) {
      _ = try mapper.mapRange(GuestAddress(buffer.rawValue + 10), count: 8192, .toDevice)
    }
    mapper.give(buffer)
    #expect(mapper.take(.toDevice) == buffer)
    #expect(rig.iommu.maps.count == maps && rig.iommu.unmaps == unmaps && mapper.innerMaps == inner)
  }

  @Test("A premapped pool that cannot be mapped to its end leaves nothing mapped and no memory taken")
  func premappedFailure() throws {
    let rig = try DriverRig(.bounce, poolSize: 256 << 10)
    let mapper = try #require(rig.mapper as? BounceMapper)
    let (slots, free) = (mapper.freeSlots, rig.pages.freeBytes)
    #expect(throws: DMAError.self) {
      _ = try PremappedMapper(over: mapper, pages: rig.pages, toDevice: 20, fromDevice: 20, bufferSize: 8192)
    }
    #expect(mapper.freeSlots == slots && rig.pages.freeBytes == free)
    do {
      let pool = try PremappedMapper(over: mapper, pages: rig.pages, toDevice: 8, fromDevice: 8, bufferSize: 8192)
      #expect(mapper.freeSlots == slots - 64 && pool.bufferSize == 8192)
    }
    #expect(mapper.freeSlots == slots && rig.pages.freeBytes == free)
  }

  // MARK: Debugging mapper

  @Test("The debugging mapper shows a forgotten synchronisation, on a machine that would not")
  func forgottenSync() throws {
    let rig = try DriverRig(.debugging)
    let eye = DeviceEye(space: rig.domain)
    let guest = try rig.buffer(100, .toDevice)
    rig.fill(guest, pattern(100))
    let range = try rig.mapper.mapRange(guest, count: 100, .toDevice)
    rig.fill(guest, [1, 2, 3])
    #expect(eye.read(range.address, 3) == Array(pattern(3)), "the device still sees what was mapped")
    rig.mapper.synchronizeForDevice(range, at: 0, count: 3)
    #expect(eye.read(range.address, 3) == [1, 2, 3])
  }

  @Test("The debugging mapper reports leaks, double unmaps, overlaps, the wrong writer and the wrong direction")
  func misuse() throws {
    let rig = try DriverRig(.debugging)
    let eye = DeviceEye(space: PhysicalSpace(rig.memory))
    let mapper = try #require(rig.mapper as? DebuggingMapper)
    let guest = try rig.buffer(300, .toDevice)
    let a = try mapper.mapRange(guest, count: 100, .toDevice)
    // Two of them that only read may share bytes.
    let b = try mapper.mapRange(guest, count: 50, .toDevice)
    #expect(mapper.misuses.isEmpty)
    let c = try mapper.mapRange(GuestAddress(guest.rawValue + 99), count: 10, .fromDevice)
    #expect(mapper.misuses == [.overlap(a, c)])
    mapper.synchronizeForDriver(a, at: 0, count: 1)
    mapper.synchronizeForDevice(a, at: 99, count: 2)
    #expect(
      mapper.misuses.dropFirst() == [
        .synchronization(a, offset: 0, count: 1), .synchronization(a, offset: 99, count: 2),
      ])
    try mapper.unmapRange(b)
    #expect(throws: DMAError.notMapped(b.address)) { try mapper.unmapRange(b) }
    #expect(mapper.misuses.last == .notMapped(b))
    // A device that goes past the IOMMU writes to what it was to read.
    let copy = try #require(rig.iommu.maps.first { $0.address == a.address.rawValue & ~4095 })
    #expect(eye.write([0xff], at: DMAAddress(copy.guest + a.address.rawValue % 4096)))
    try mapper.unmapRange(a)
    #expect(mapper.misuses.last == .writtenToDevice(a))
    rig.fill(GuestAddress(guest.rawValue + 99), [42])
    try mapper.unmapRange(c)
    #expect(mapper.misuses.last == .writtenByDriver(c))
    let ring = try mapper.allocateRange(4096, alignment: 4096)
    let d = try mapper.mapRange(guest, count: 1, .toDevice)
    #expect(mapper.mappedCount == 2)
    #expect(mapper.finish().suffix(2) == [.leak(d), .leak(ring)])
  }
}
