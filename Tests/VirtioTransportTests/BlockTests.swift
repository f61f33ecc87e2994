import HostIO
import MachineKit
import Testing
import Virtio
import VirtioBlock
import VirtioDrivers
import VirtioPCI
import VirtioTestKit

@Suite("A disk as a PCI function", .timeLimit(.minutes(10))) struct BlockTests {
  /// How driver and disk meet.
  enum Way: Sendable, CaseIterable { case translated, physical, legacy }

  @Test(
    "What is written comes back, translated, physical and through the legacy interface (R004, R006, R025)",
    arguments: Way.allCases, [RingCase.Driver.literal, .driverQueue])
  func data(_ way: Way, _ driver: RingCase.Driver) throws {
    let file = try MemoryFile(name: "disk", size: 1 << 20)
    let iommu = PageIOMMU()
    let rig = try FunctionRig(
      try BlockDevice(BlockOptions(inMemory: file)), .with { $0.iommuPlatform = way == .translated ? .on : .off },
      iommu: iommu)
    let transport = try rig.driver(legacy: way == .legacy)
    #expect(transport.deviceID == .block)
    #expect(transport.configuration(8) == [0, 8, 0, 0, 0, 0, 0, 0])

    let features: Features = way == .translated ? .platform : way == .physical ? .plain : []
    var place = rig.place(scattered: way == .translated)
    if way == .legacy {
      transport.status = [.acknowledge, .driver]
      transport.accept([])
      place.layout = QueueLayout(legacyAt: 0x20_0000, size: transport.maxQueueSize(0))
    } else {
      #expect(rig.negotiate(transport, features))
    }
    let ring = place.ring(features, driver)
    #expect(transport.setVector(1, ofQueue: 0))
    transport.enableQueue(0, place.layout)
    transport.status =
      way == .legacy ? [.acknowledge, .driver, .driverOK] : [.acknowledge, .driver, .featuresOK, .driverOK]

    /// A request of §5.2.6 at `place.data`: header, data a page on, status behind it. Its status byte.
    func request(_ type: UInt32, sector: UInt64, _ count: UInt32) -> UInt8? {
      place.literal.write(le32: type, at: place.data)
      place.literal.write(le32: 0, at: place.data + 4)
      place.literal.write(le64: sector, at: place.data + 8)
      place.literal.write([0xff], at: place.data + 512)
      ring.wantCalls()
      _ = ring.post([
        LiteralDescriptor(place.data, 16), LiteralDescriptor(place.data + 3000, count, writable: type == 0),
        LiteralDescriptor(place.data + 512, 1, writable: true),
      ])
      ring.publish()
      transport.notify(0, data: 0)
      guard rig.interrupts.wait({ !ring.takeUsed().isEmpty }) else { return nil }
      return place.literal.read(1, at: place.data + 512)[0]
    }
    let bytes = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 / 256) }
    place.literal.write(bytes, at: place.data + 3000)
    #expect(request(1, sector: 9, 4096) == 0)
    place.literal.write([UInt8](repeating: 0, count: 4096), at: place.data + 3000)
    #expect(request(0, sector: 9, 4096) == 0)
    #expect(place.literal.read(4096, at: place.data + 3000) == bytes)
    #expect((iommu.lookUps(by: rig.requester) > 0) == (way == .translated) && iommu.faults.isEmpty)
  }
}
