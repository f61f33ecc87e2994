import DMA
import DriverDMA
import IOMMUInterface
import MachineKit
import PCI
import Testing
import Virtio
import VirtioDrivers
import VirtioMMIO
import VirtioPCI
import VirtioServing
import VirtioTestKit

@Suite("Which memory a device's queues reach", .timeLimit(.minutes(10))) struct PathTests {
  @Test(
    "Negotiated and behind an IOMMU that knows its number: ring, indirect table and data are translated, page by page (R004, R029, R034, R043)",
    arguments: Place.allCases, RingKind.allDrivers)
  func translated(_ place: Place, _ kind: RingKind) throws {
    let iommu = PageIOMMU()
    let rig = try place.rig(iommu: iommu)
    #expect(iommu.adoptions == [rig.requester])
    #expect(try rig.run(kind, .platform, scattered: true))
    #expect(iommu.lookUps(by: rig.requester) > 0 && iommu.faults.isEmpty && rig.tookOnly(.platform))
  }

  @Test(
    "Negotiated and in front of no IOMMU: addresses are physical (R005, R033)", arguments: Place.allCases,
    RingKind.allDrivers)
  func flat(_ place: Place, _ kind: RingKind) throws {
    let rig = try place.rig()
    #expect(!rig.isBehindIOMMU)
    #expect(try rig.run(kind, .platform, scattered: false))
    #expect(rig.tookOnly(.platform))
  }

  @Test(
    "Not offered: addresses are physical past the IOMMU, which hears nothing (R006)", arguments: Place.allCases,
    RingKind.allDrivers)
  func past(_ place: Place, _ kind: RingKind) throws {
    let iommu = PageIOMMU()
    let rig = try place.rig(EchoDevice(), .off, iommu: iommu)
    #expect(rig.isBehindIOMMU)
    #expect(try rig.run(kind, .plain, scattered: false))
    #expect(iommu.lookUps(by: rig.requester) == 0 && iommu.faults.isEmpty && rig.tookOnly(.physical))
  }

  @Test(
    "Behind an IOMMU that lets it bypass, addresses are physical, and the translated path is taken",
    arguments: Place.allCases)
  func bypass(_ place: Place) throws {
    let rig = try place.rig()
    rig.setIOMMU(PassThroughUnit())
    #expect(rig.isBehindIOMMU)
    #expect(try rig.run(RingKind(indirect: true), .platform, scattered: false))
    #expect(rig.tookOnly(.platform))
  }

  @Test(
    "An IOMMU that comes and goes counts while it is there, and gives the device up when it is gone (R032)",
    arguments: Place.allCases)
  func late(_ place: Place) throws {
    let iommu = PageIOMMU()
    let rig = try place.rig(iommu: iommu, lateIOMMU: true)
    rig.setIOMMU(iommu)
    #expect(try rig.run(RingKind(indirect: true), .platform, scattered: true))
    rig.setIOMMU(nil)
    #expect(iommu.releases == [rig.requester] && !rig.isBehindIOMMU)
    #expect(try rig.run(RingKind(packed: true), .platform, scattered: false))
  }

  @Test(
    "ORDER_PLATFORM and the bit negotiate in all four ways, and data moves (R020)", arguments: [false, true],
    [false, true])
  func order(_ platform: Bool, _ order: Bool) throws {
    let features = (platform ? Features.platform : .plain).union(order ? .orderPlatform : [])
    for place in Place.allCases {
      let rig = try place.rig(EchoDevice(), platform ? .on : .off, iommu: PageIOMMU())
      #expect(try rig.run(RingKind(), features, scattered: platform), "\(place)")
    }
  }

  @Test(
    "The bit goes with every feature of rings and notifications (R021)", arguments: Place.allCases,
    [Features.ringPacked, .inOrder, .eventIndex, .indirectDescriptors, .notificationData, .ringReset, .suspend])
  func together(_ place: Place, _ feature: Features) throws {
    let kind = RingKind(packed: feature == .ringPacked, indirect: feature == .indirectDescriptors)
    #expect(
      try place.rig(iommu: PageIOMMU()).run(kind, Features.platform.union(feature), scattered: true))
  }

  @Test("Before DRIVER_OK nothing is read or written, whatever is notified (R013)", arguments: Place.allCases)
  func nothingBefore(_ place: Place) throws {
    let iommu = PageIOMMU()
    let (rig, transport) = try place.driven(iommu: iommu)
    #expect(rig.negotiate(transport, .platform))
    transport.enableQueue(0, rig.place(scattered: true).layout)
    transport.notify(0, data: 0)
    #expect(!rig.control.isRunning(0) && iommu.lookUps(by: rig.requester) == 0)
  }

  @Test(
    "A ring that is not mapped makes the device need a reset, which is announced, and the next driver is served (R041, R042)",
    arguments: Place.allCases, [false, true])
  func unmapped(_ place: Place, _ onlySecondPage: Bool) throws {
    let iommu = PageIOMMU()
    let (rig, transport) = try place.driven(EchoDevice(), iommu: iommu)
    let queue = rig.place(512, scattered: true)
    iommu.unmapAll(rig.requester)
    if onlySecondPage {
      iommu.map(rig.requester, queue.layout.descriptorArea, byteCount: 4096, to: GuestAddress(0x10_0000))
      iommu.map(rig.requester, queue.layout.driverArea, byteCount: 0x8000, to: GuestAddress(0x20_0000))
    }
    #expect(rig.negotiate(transport, .platform))
    rig.start(transport, queue)
    #expect(rig.causesOfChange(transport) == 2 && transport.status.contains(.needsReset))
    #expect(iommu.faults.contains { $0.requester == rig.requester && $0.fault.reason == .unmapped })
    #expect(rig.counts.translated.faults > 0)
    iommu.unmapAll(rig.requester)
    #expect(try rig.run(RingKind(), .platform, scattered: true))
    #expect(!transport.status.contains(.needsReset))
  }

  @Test(
    "A buffer that is not mapped is a fault of its request alone, and physical memory at its number is left alone (R034, R090)",
    arguments: Place.allCases)
  func unmappedBuffer(_ place: Place) throws {
    let iommu = PageIOMMU()
    let (rig, transport) = try place.driven(iommu: iommu)
    let (queue, ring) = try rig.running(transport, .platform, scattered: true)
    // 0x40_0000 is memory, and no address of the device's.
    let outside = LiteralMemory(rig.memory)
    outside.write([UInt8](repeating: 0x5a, count: 64), at: DMAAddress(0x40_0000))
    let used = rig.send(transport, [LiteralDescriptor(DMAAddress(0x40_0000), 64, writable: true)], ring)
    #expect(used?.length == 0 && outside.read(64, at: DMAAddress(0x40_0000)) == [UInt8](repeating: 0x5a, count: 64))
    #expect(iommu.faults.map(\.fault.address) == [DMAAddress(0x40_0000)])
    #expect(rig.echo(transport, queue, ring))
  }

  @Test("A machine's IOMMU keeps its devices apart by the numbers it gave them (R034)")
  func numbers() throws {
    let iommu = PageIOMMU()
    let memory = try GuestMemory(byteCount: 16 << 20)
    var rigs: [(VirtioMMIODevice, InterruptLog, QueuePlace)] = []
    for number in [UInt16(1), 2] {
      let endpoint = DMAEndpoint(memory, requester: RequesterID(rawValue: number))
      endpoint.setIOMMU(iommu)
      let line = try InterruptLog()
      let device = try VirtioMMIODevice(
        EchoDevice(), .platform, at: endpoint, line: { line.setLine($0) }, log: .silent)
      // Only the first device's pages are mapped.
      let place = QueuePlace(memory, size: 16, packed: false, scattered: true) {
        iommu.map(RequesterID(rawValue: 1), $0, byteCount: 4096, to: $1)
      }
      rigs.append((device, line, place))
    }
    for (i, (device, line, place)) in rigs.enumerated() {
      let transport = try MMIODriverTransport(Window(device))
      let features = try transport.initialize(
        accepting: [], on: DriverPlatform(pages: GuestPages(memory, at: GuestAddress(8 << 20), byteCount: 1 << 20)))
      #expect(features.contains(.accessPlatform))
      let ring = place.ring(features, .literal)
      transport.enableQueue(0, place.layout)
      try? transport.begin()
      _ = ring.post([LiteralDescriptor(place.data, 16, writable: true)])
      ring.publish()
      transport.notify(0, data: 0)
      #expect(line.poll { line.isLineAsserted })
      #expect(transport.status.contains(.needsReset) == (i == 1))
    }
    #expect(iommu.faults.allSatisfy { $0.requester == RequesterID(rawValue: 2) } && !iommu.faults.isEmpty)
  }

  @Test("Ring addresses read back as they were written, while the queue runs too (R040)")
  func verbatim() throws {
    let rig = try FunctionRig(EchoDevice(), .platform, iommu: PageIOMMU())
    let transport = try rig.driver()
    let (place, ring) = try rig.running(transport, .platform, scattered: true)
    #expect(rig.echo(transport, place, ring))
    for (at, address) in [
      (UInt64(32), place.layout.descriptorArea), (40, place.layout.driverArea), (48, place.layout.deviceArea),
    ] {
      let read =
        UInt64(rig.access.readBAR(4, at: at, width: 4)) | UInt64(rig.access.readBAR(4, at: at + 4, width: 4)) << 32
      #expect(read == address.rawValue)
    }
    // Enabled, it is not moved any more.
    rig.access.writeBAR(4, at: 32, width: 4, 0)
    #expect(rig.access.readBAR(4, at: 32, width: 4) == UInt32(truncatingIfNeeded: place.layout.descriptorArea.rawValue))
  }

  @Test(
    "With bus mastering off a function reaches nothing, the bit negotiated or not, and works once it is on (R039)",
    arguments: [false, true])
  func busMaster(_ platform: Bool) throws {
    let iommu = PageIOMMU()
    let rig = try FunctionRig(EchoDevice(), .with { $0.iommuPlatform = platform ? .on : .off }, iommu: iommu)
    let transport = try rig.driver()
    let features: Features = platform ? .platform : .plain
    let place = rig.place(scattered: platform)
    let command = PCICommand([.memorySpace, .ioSpace])
    rig.access.writeConfiguration(at: PCIRegister.command, width: 2, UInt32(command.rawValue))
    #expect(rig.negotiate(transport, features))
    var ring = place.ring(features, .literal)
    rig.start(transport, place)
    // The interrupt that tells of it is a write to memory as well.
    #expect(rig.interrupts.poll { transport.status.contains(.needsReset) })
    #expect(ring.takeUsed().isEmpty && rig.interrupts.data.isEmpty)
    #expect(iommu.lookUps(by: rig.requester) == 0 && iommu.faults.isEmpty)
    rig.access.writeConfiguration(at: PCIRegister.command, width: 2, UInt32(command.union(.busMaster).rawValue))
    #expect(rig.negotiate(transport, features))
    ring = place.ring(features, .literal)
    rig.start(transport, place)
    #expect(rig.echo(transport, place, ring))
  }

  @Test(
    "Registers and doorbells work where nothing at all is mapped, through the BAR and through the window (R038, R071)")
  func windows() throws {
    let iommu = PageIOMMU()
    let rig = try FunctionRig(CounterDevice(), .platform, iommu: iommu)
    let transport = try rig.driver()
    var at = 0
    for (place, id) in list(rig) where id == 9 && rig.access.readConfiguration(at: place + 3, width: 1) == 5 {
      at = place
    }
    try #require(at != 0)
    func window(_ offset: UInt32, _ width: UInt32) {
      rig.access.writeConfiguration(at: at + 4, width: 1, 4)
      rig.access.writeConfiguration(at: at + 8, width: 4, offset)
      rig.access.writeConfiguration(at: at + 12, width: 4, width)
    }
    // num_queues, then the device's configuration, through the window.
    window(18, 2)
    #expect(rig.access.readConfiguration(at: at + 16, width: 4) & 0xffff == 3)
    window(0x2000, 4)
    #expect(rig.access.readConfiguration(at: at + 16, width: 4) == 0x3333_4444)
    window(20, 1)
    rig.access.writeConfiguration(at: at + 16, width: 4, 3)
    #expect(transport.status == [.acknowledge, .driver])
    // What is outside of the BAR, misaligned or of no width does nothing.
    for (offset, width) in [(UInt32.max, UInt32(4)), (0x3fff, 4), (21, 2), (0, 0), (0, 3), (0, .max)] {
      window(offset, width)
      rig.access.writeConfiguration(at: at + 16, width: 4, 0)
      _ = rig.access.readConfiguration(at: at + 16, width: 4)
    }
    #expect(transport.status == [.acknowledge, .driver])
    window(0x3000, 2)
    rig.access.writeConfiguration(at: at + 16, width: 2, 0)
    #expect(iommu.lookUps(by: rig.requester) == 0 && iommu.faults.isEmpty)
  }

  private func list(_ rig: FunctionRig) -> [(Int, UInt32)] {
    var at = Int(rig.access.readConfiguration(at: 0x34, width: 1))
    var result: [(Int, UInt32)] = []
    while at != 0, result.count < 20 {
      result.append((at, rig.access.readConfiguration(at: at, width: 1)))
      at = Int(rig.access.readConfiguration(at: at + 1, width: 1))
    }
    return result
  }
}

/// A unit that is in front of the device and lets everything pass.
private final class PassThroughUnit: IOMMU {
  func adopt(_ endpoint: EndpointSpace) { endpoint.setRoute(.physical) }
  func release(_ endpoint: EndpointSpace) { endpoint.setRoute(.blocked(.stopped)) }
}
