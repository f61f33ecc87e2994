import DMA
import DriverDMA
import IOMMUInterface
import Testing
import VirtioTestKit

@Suite("Mappers")
struct MapperTests {
  @Test(
    "A device sees what was mapped, in its direction and no other way, and nothing of it afterwards",
    arguments: MapperKind.allCases)
  func bytes(kind: MapperKind) throws {
    let rig = try DriverRig(kind)
    let eye = DeviceEye(space: rig.platformSpace)
    for (n, direction) in [DMADirection.toDevice, .fromDevice].enumerated() {
      for (skew, count) in [(UInt64(0), 4096), (7, 1), (2047, 4099), (513, 512)] {
        let guest = try rig.buffer(count, direction, skew: skew)
        let before = pattern(count, seed: n)
        rig.fill(guest, before)
        let mapping = try DMAMapping(guest, count: UInt64(count), direction, by: rig.mapper)
        #expect(mapping.count == UInt64(count) && mapping.guest == guest)
        let address = mapping.address
        if direction == .toDevice {
          #expect(eye.read(address, count) == before)
        } else {
          #expect(eye.write(pattern(count, seed: 99), at: address))
        }
        if [.strict, .deferred, .premapped, .grants, .debugging].contains(kind) {
          if direction == .toDevice { #expect(!eye.write([1], at: address)) }
          // Grants have no write-only kind.
          if direction == .fromDevice, kind != .grants { #expect(eye.read(address, 1) == nil) }
        }
        try mapping.unmap()
        #expect(rig.bytes(guest, count) == (direction == .toDevice ? before : pattern(count, seed: 99)))
        if [.strict, .grants, .debugging].contains(kind) {
          #expect(eye.read(address, 1) == nil && !eye.write([1], at: address))
        }
        rig.giveBack([GuestAddress(guest.rawValue - skew)])
      }
    }
    if let debugging = rig.mapper as? DebuggingMapper { #expect(debugging.finish().isEmpty) }
  }

  @Test("Bytes that a device did not write come back as they were", arguments: MapperKind.allCases)
  func partial(kind: MapperKind) throws {
    let rig = try DriverRig(kind)
    let eye = DeviceEye(space: rig.platformSpace)
    let guest = try rig.buffer(3000, .fromDevice)
    rig.fill(guest, pattern(3000))
    let mapping = try DMAMapping(guest, count: 3000, .fromDevice, by: rig.mapper)
    #expect(eye.write([9, 9, 9, 9], at: DMAAddress(mapping.address.rawValue + 100)))
    try mapping.unmap()
    var expected = pattern(3000)
    for i in 100..<104 { expected[i] = 9 }
    #expect(rig.bytes(guest, 3000) == expected)
  }

  @Test(
    "Coherent memory is zeroed, aligned, seen by both sides at once, and the device's no longer once unmapped",
    arguments: MapperKind.allCases)
  func coherent(kind: MapperKind) throws {
    let rig = try DriverRig(kind)
    let eye = DeviceEye(space: rig.platformSpace)
    let ring = try DMAMapping(allocating: 10000, alignment: 4096, by: rig.mapper)
    let (address, guest) = (ring.address, ring.guest)
    #expect(address.rawValue % 4096 == 0 && guest.rawValue % 4096 == 0)
    #expect(eye.read(address, 10000) == [UInt8](repeating: 0, count: 10000))
    rig.fill(GuestAddress(guest.rawValue + 9000), [1, 2, 3])
    #expect(eye.read(DMAAddress(address.rawValue + 9000), 3) == [1, 2, 3])
    #expect(eye.write([5, 6], at: DMAAddress(address.rawValue + 5)))
    #expect(rig.bytes(GuestAddress(guest.rawValue + 5), 2) == [5, 6])
    try ring.unmap()
    if [.strict, .grants, .premapped, .debugging, .deferred].contains(kind) {
      if let deferred = rig.mapper as? IOMMUMapper { try deferred.flush() }
      #expect(eye.read(address, 1) == nil)
    }
  }

  @Test(
    "Synchronising shows each side what the other wrote while a buffer stays mapped", arguments: MapperKind.allCases)
  func synchronizing(kind: MapperKind) throws {
    let rig = try DriverRig(kind)
    let eye = DeviceEye(space: rig.platformSpace)
    let out = try rig.buffer(600, .toDevice)
    let toDevice = try DMAMapping(out, count: 600, .toDevice, by: rig.mapper)
    rig.fill(GuestAddress(out.rawValue + 300), [7, 8, 9])
    toDevice.synchronizeForDevice(at: 300, count: 3)
    #expect(eye.read(DMAAddress(toDevice.address.rawValue + 300), 3) == [7, 8, 9])

    let back = try rig.buffer(600, .fromDevice)
    let fromDevice = try DMAMapping(back, count: 600, .fromDevice, by: rig.mapper)
    #expect(eye.write([1, 2, 3], at: DMAAddress(fromDevice.address.rawValue + 10)))
    fromDevice.synchronizeForDriver(at: 8, count: 8)
    #expect(rig.bytes(GuestAddress(back.rawValue + 10), 3) == [1, 2, 3])
    try toDevice.unmap()
    try fromDevice.unmap()
  }

  @Test("Mappings made and ended at random leave nothing behind", arguments: MapperKind.allCases)
  func churn(kind: MapperKind) throws {
    let rig = try DriverRig(kind)
    let eye = DeviceEye(space: rig.platformSpace)
    var random = SeededGenerator(4)
    let freeBefore = rig.addresses.freeBytes
    let mapped = rig.domain.mappings
    let slots = (rig.mapper as? BounceMapper)?.freeSlots
    var held: [(range: MappedRange, bytes: [UInt8], start: GuestAddress)] = []
    for step in 0..<600 {
      if random.chance(1, in: 2), held.count < 50 {
        let direction: DMADirection = random.chance(1, in: 2) ? .toDevice : .fromDevice
        let skew = UInt64.random(in: 0..<100, using: &random)
        let count = Int.random(in: 1...(random.chance(1, in: 8) ? 8000 : 700), using: &random)
        let guest = try rig.buffer(count, direction, skew: skew)
        let bytes = pattern(count, seed: step)
        rig.fill(guest, bytes)
        let range = try rig.mapper.mapRange(guest, count: UInt64(count), direction)
        if direction == .fromDevice { #expect(eye.write(bytes.map { ~$0 }, at: range.address)) }
        held.append((range, bytes, GuestAddress(guest.rawValue - skew)))
      } else if !held.isEmpty {
        let one = held.remove(at: Int.random(in: held.indices, using: &random))
        if one.range.direction == .toDevice { #expect(eye.read(one.range.address, one.bytes.count) == one.bytes) }
        try rig.mapper.unmapRange(one.range)
        let now = rig.bytes(one.range.guest, one.bytes.count)
        #expect(now == (one.range.direction == .toDevice ? one.bytes : one.bytes.map { ~$0 }))
        if let pool = rig.mapper as? PremappedMapper { pool.give(one.start) }
      }
    }
    for one in held { try rig.mapper.unmapRange(one.range) }
    if let deferred = rig.mapper as? IOMMUMapper { try deferred.flush() }
    #expect(rig.addresses.freeBytes == freeBefore)
    #expect(rig.domain.mappings == mapped)
    #expect(rig.grants.granted.isEmpty)
    #expect((rig.mapper as? BounceMapper)?.freeSlots == slots)
    if let debugging = rig.mapper as? DebuggingMapper { #expect(debugging.finish().isEmpty) }
  }

  @Test("A range of no bytes, or one past the last address, is refused", arguments: MapperKind.allCases)
  func ranges(kind: MapperKind) throws {
    let rig = try DriverRig(kind)
    #expect(throws: DMAError.range(GuestAddress(4096), count: 0)) {
      _ = try rig.mapper.mapRange(GuestAddress(4096), count: 0, .toDevice)
    }
    #expect(throws: DMAError.range(GuestAddress(.max), count: 2)) {
      _ = try rig.mapper.mapRange(GuestAddress(.max), count: 2, .toDevice)
    }
    #expect(throws: DMAError.self) { _ = try rig.mapper.allocateRange(0, alignment: 4096) }
  }

  @Test("A mapping ends once: by hand, or with its value")
  func once() throws {
    let rig = try DriverRig(.strict)
    let guest = try rig.buffer(4096, .toDevice)
    do {
      let mapping = try DMAMapping(guest, count: 10, .toDevice, by: rig.mapper)
      #expect(rig.iommu.unmaps == 0)
      try mapping.unmap()
      #expect(rig.iommu.unmaps == 1)
    }
    #expect(rig.iommu.unmaps == 1)
    do {
      let mapping = try DMAMapping(guest, count: 10, .toDevice, by: rig.mapper)
      #expect(mapping.count == 10)
    }
    #expect(rig.iommu.unmaps == 2)
    do {
      let mapping = try DMAMapping(guest, count: 10, .toDevice, by: rig.mapper)
      mapping.abandon()
    }
    #expect(rig.iommu.unmaps == 2 && rig.domain.mappings == 1)
  }
}
