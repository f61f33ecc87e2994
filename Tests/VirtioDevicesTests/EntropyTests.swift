import DMA
import Testing
import Virtio
import VirtioTestKit

@testable import VirtioEntropy

@Suite("virtio-rng") struct EntropyTests {
  @Test("A buffer is filled completely, with bytes that differ from request to request", arguments: RingKind.all)
  func fills(kind: RingKind) throws {
    let rig = try DeviceRig(EntropyDevice(), kind: kind)
    let first = try rig.perform(readable: [], writable: [300, 1, 5000])
    let second = try rig.perform(readable: [], writable: [300, 1, 5000])
    #expect(first.used == 5301)
    #expect(first.bytes != second.bytes)
    // 5301 fair bytes hold all 256 values but with a probability below 1e-6, and few runs of what the buffer held
    // before.
    #expect(Set(first.bytes).count == 256)
    #expect(first.bytes.suffix(64) != ArraySlice(repeating: 0xEE, count: 64))
  }

  @Test("A huge buffer gets 64 KiB, and the used length says so")
  func caps() throws {
    let rig = try DeviceRig(EntropyDevice())
    let result = try rig.perform(readable: [], writable: [200_000])
    #expect(result.used == 65_536)
    #expect(result.bytes[65_536...].allSatisfy { $0 == 0xEE })
  }

  @Test("A request without room for a byte comes back with 0, and so does one that names no memory (R090)")
  func nothing() throws {
    let rig = try DeviceRig(EntropyDevice())
    let readable = try rig.perform(readable: [[1, 2, 3]], writable: [])
    #expect(readable.used == 0)
    let head = rig.submit([LiteralDescriptor(DMAAddress(0x7fff_0000_0000), 16, writable: true)])
    try rig.run()
    #expect(rig.take(head)?.used == 0)
    let after = try rig.perform(readable: [], writable: [16])
    #expect(after.used == 16)
  }

  @Test("It has no configuration space and no features of its own")
  func identity() {
    let device = EntropyDevice()
    #expect(device.id == .entropy)
    #expect(device.features == .ring)
    #expect(device.configurationSize == 0)
    #expect(device.maxQueueSizes.count == 1)
  }
}
