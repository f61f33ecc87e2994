import DMA
import DriverDMA
import Testing
import Virtio
import VirtioBlock
import VirtioDrivers
import VirtioTestKit

@Suite("The mapper of a Xen PV guest")
struct XenMapperTests {
  private func bench() throws -> (DriverRig, XenMapper, DeviceEye) {
    let rig = try DriverRig(.xen)
    return (rig, try #require(rig.mapper as? XenMapper), DeviceEye(space: rig.platformSpace))
  }

  @Test(
    "What is in one piece in the machine is mapped where it is, what is not goes through the pool, and the device sees the same (R173)"
  )
  func pieces() throws {
    let (rig, mapper, eye) = try bench()
    let buffer = try rig.buffer(256 << 10, .toDevice)
    // The first place at which two pieces meet.
    let seam = (buffer.rawValue + XenMachine.piece) & ~(XenMachine.piece - 1)
    let slots = mapper.freeSlots
    for (start, count, isWhole) in [
      (seam, UInt64(65536), true), (seam + 5, 65531, true), (seam - 8, 8, true), (seam - 8, 16, false),
      (seam - 5000, 20000, false),
    ] {
      let guest = GuestAddress(start)
      rig.fill(guest, pattern(Int(count), seed: Int(start)))
      let range = try mapper.mapRange(guest, count: count, .toDevice)
      #expect((range.address.rawValue == rig.xen.address(of: start)) == isWhole)
      #expect((mapper.freeSlots == slots) == isWhole)
      #expect(eye.read(range.address, 1) == Array(pattern(Int(count), seed: Int(start)).prefix(1)))
      #expect(
        eye.read(DMAAddress(range.address.rawValue + count - 3), 3)
          == Array(pattern(Int(count), seed: Int(start)).suffix(3)))
      try mapper.unmapRange(range)
      #expect(mapper.freeSlots == slots)
    }
    #expect(mapper.bounced == 2)
  }

  @Test("No buffer may be longer than the pool takes, wherever it lies (R176)")
  func maximum() throws {
    let (rig, mapper, _) = try bench()
    let buffer = try rig.buffer(1 << 20, .toDevice)
    #expect(mapper.maxMappingSize == 256 << 10)
    let range = try mapper.mapRange(GuestAddress(buffer.rawValue + 77), count: mapper.maxMappingSize, .fromDevice)
    try mapper.unmapRange(range)
    #expect(throws: DMAError.tooLarge(mapper.maxMappingSize + 1, maximum: mapper.maxMappingSize)) {
      _ = try mapper.mapRange(buffer, count: mapper.maxMappingSize + 1, .toDevice)
    }
  }

  @Test(
    "A device with too few address bits gets what it can name: the pool, and an error where that is out of reach too")
  func limit() throws {
    // As far as the pool's end, which takes the first part of the shared memory.
    let rig = try DriverRig(.direct)
    let limit = XenMachine.start + DriverRig.sharedStart + (1 << 20) - 1
    let mapper = try XenMapper(rig.xen, contiguous: rig.shared, poolSize: 1 << 20, limit: limit)
    let eye = DeviceEye(space: PhysicalSpace(rig.xen.machine))
    let near = try mapper.mapRange(rig.buffer(4096, .toDevice), count: 4096, .toDevice)
    #expect(mapper.bounced == 0)
    try mapper.unmapRange(near)
    let high = GuestAddress(UInt64(DriverRig.size) - 4096)
    rig.fill(high, [1, 2, 3])
    let range = try mapper.mapRange(high, count: 3, .toDevice)
    #expect(mapper.bounced == 1 && range.address.rawValue <= limit)
    #expect(eye.read(range.address, 3) == [1, 2, 3])
    #expect(throws: DMAError.self) { _ = try mapper.allocateRange(4096, alignment: 4096) }
    #expect(throws: DMAError.self) {
      _ = try XenMapper(rig.xen, contiguous: rig.shared, poolSize: 1 << 20, limit: 0xFFFF_FFFF)
    }
  }

  @Test("Coherent memory that is not in one piece is refused and given back; memory that is nowhere cannot be mapped")
  func refusals() throws {
    let (rig, mapper, _) = try bench()
    // Pages that the platform did not put in one piece.
    #expect(throws: DMAError.self) { _ = try XenMapper(rig.xen, contiguous: rig.pages, poolSize: 1 << 20) }
    let free = rig.pages.freeBytes
    let small = try XenMapper(rig.xen, contiguous: rig.pages, poolSize: 32 << 10)
    #expect(throws: DMAError.self) { _ = try small.allocateRange(128 << 10, alignment: 4096) }
    #expect(rig.pages.freeBytes == free - 32 << 10)
    let buffer = try rig.buffer(8192, .toDevice)
    rig.xen.hole = buffer.rawValue >> 12 + 1
    #expect(throws: DMAError.missing(GuestAddress(buffer.rawValue + 4096))) {
      _ = try mapper.mapRange(buffer, count: 8192, .toDevice)
    }
    _ = try mapper.mapRange(buffer, count: 4096, .toDevice)
  }

  @Test(
    "A disk in a Xen guest without the bit is given machine addresses only, rings included (R173)",
    arguments: RingKind.all)
  func disk(ring: RingKind) throws {
    let (rig, mapper, _) = try bench()
    let disk = try Disk()
    let transport = InProcessTransport(
      disk.device, offered: disk.device.features, platform: PhysicalSpace(rig.xen.machine),
      physical: PhysicalSpace(rig.xen.machine))
    let driver = try BlockDriver(transport, on: rig.platform(isXen: true), options: ring.options())
    #expect(try #require(transport.layouts[0]).descriptorArea.rawValue >= XenMachine.start)
    let guest = try rig.buffer(192 << 10, .toDevice, skew: 512)
    rig.fill(guest, pattern(192 << 10))
    try driver.write(3, from: [GuestSegment(guest, count: 192 << 10)].span)
    #expect(try disk.bytes(1536..<1536 + 192 << 10) == pattern(192 << 10))
    #expect(mapper.bounced > 0)
    let back = try rig.buffer(192 << 10, .fromDevice, skew: 512)
    try driver.read(3, into: [GuestSegment(back, count: 192 << 10)].span)
    #expect(rig.bytes(back, 192 << 10) == pattern(192 << 10))
    try driver.stop()
  }
}
