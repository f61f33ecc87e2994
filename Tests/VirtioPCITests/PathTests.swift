import DMA
import DriverDMA
import IOMMUInterface
import MachineKit
import PCI
import Testing
import Virtio
import VirtioDrivers
import VirtioPCI
import VirtioServing
import VirtioTestKit

@Suite("Which memory a function's queues reach", .timeLimit(.minutes(10))) struct PathTests {
  private func run(_ rig: FunctionRig, _ kind: RingKind, _ base: Features, scattered: Bool) throws -> Bool {
    let transport = try rig.driver()
    let features = kind.features(base)
    #expect(rig.negotiate(transport, features))
    let place = rig.place(16, packed: kind.packed, scattered: scattered)
    let ring = place.ring(features, kind.driver)
    rig.start(transport, place)
    for round in UInt8(0)..<20 where !rig.echo(transport, place, ring, indirect: kind.indirect, seed: round) {
      return false
    }
    transport.status = []
    return true
  }

  @Test(
    "Negotiated and behind an IOMMU: ring, indirect table and data are translated, page by page (R004, R029, R043)",
    arguments: RingKind.allDrivers)
  func translated(_ kind: RingKind) throws {
    let iommu = PageIOMMU()
    let rig = try FunctionRig(EchoDevice(), .platform, iommu: iommu)
    #expect(try run(rig, kind, .platform, scattered: true))
    #expect(iommu.lookUps(by: rig.requester) > 0 && iommu.faults.isEmpty)
  }

  @Test("Negotiated and no IOMMU: addresses are physical (R005)", arguments: RingKind.allDrivers)
  func noIOMMU(_ kind: RingKind) throws {
    #expect(try run(FunctionRig(EchoDevice(), .platform), kind, .platform, scattered: false))
  }

  @Test(
    "Not offered: addresses are physical past the IOMMU, which hears nothing (R006)", arguments: RingKind.allDrivers)
  func bypass(_ kind: RingKind) throws {
    let iommu = PageIOMMU()
    let rig = try FunctionRig(EchoDevice(), iommu: iommu)
    #expect(try run(rig, kind, .plain, scattered: false))
    #expect(iommu.lookUps(by: rig.requester) == 0 && iommu.faults.isEmpty)
  }

  @Test("An IOMMU that is made after the function translates for it (R032)")
  func late() throws {
    let iommu = PageIOMMU()
    let rig = try FunctionRig(EchoDevice(), .platform, iommu: iommu, lateIOMMU: true)
    #expect(try run(rig, RingKind(indirect: true), .platform, scattered: true))
  }

  @Test(
    "ORDER_PLATFORM and the bit negotiate in all four ways, and data moves (R020)", arguments: [false, true],
    [false, true])
  func order(_ platform: Bool, _ order: Bool) throws {
    var features: Features = platform ? .platform : .plain
    if order { features.insert(.orderPlatform) }
    let rig = try FunctionRig(EchoDevice(), .with { $0.iommuPlatform = platform ? .on : .off }, iommu: PageIOMMU())
    #expect(try run(rig, RingKind(), features, scattered: platform))
  }

  @Test(
    "The bit goes with every feature of rings and notifications (R021)",
    arguments: [
      Features.ringPacked, .inOrder, .eventIndex, .indirectDescriptors, .notificationData, .ringReset, .suspend,
    ])
  func together(_ feature: Features) throws {
    let rig = try FunctionRig(EchoDevice(), .platform, iommu: PageIOMMU())
    let packed = feature == .ringPacked
    let kind = RingKind(packed: packed, indirect: feature == .indirectDescriptors)
    #expect(try run(rig, kind, Features.platform.union(feature), scattered: true))
  }

  @Test("Before DRIVER_OK nothing is read or written, whatever is notified (R013)")
  func nothingBefore() throws {
    let iommu = PageIOMMU()
    let rig = try FunctionRig(EchoDevice(), .platform, iommu: iommu)
    let transport = try rig.driver()
    #expect(rig.negotiate(transport, .platform))
    let place = rig.place(scattered: true)
    transport.enableQueue(0, place.layout)
    transport.notify(0, data: 0)
    #expect(!rig.function.control.isRunning(0))
    #expect(iommu.lookUps(by: rig.requester) == 0)
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
    "A ring that is not mapped makes the device need a reset, which is announced, and the next driver is served (R041, R042)",
    arguments: [false, true])
  func unmapped(_ onlySecondPage: Bool) throws {
    let iommu = PageIOMMU()
    let rig = try FunctionRig(EchoDevice(), .platform, iommu: iommu)
    let transport = try rig.driver()
    let place = rig.place(512, scattered: true)
    if onlySecondPage {
      iommu.unmapAll(rig.requester)
      iommu.map(rig.requester, place.layout.descriptorArea, byteCount: 4096, to: GuestAddress(0x10_0000))
      iommu.map(rig.requester, place.layout.driverArea, byteCount: 0x8000, to: GuestAddress(0x20_0000))
    } else {
      iommu.unmapAll(rig.requester)
    }
    #expect(rig.negotiate(transport, .platform))
    rig.start(transport, place)
    #expect(rig.interrupts.wait { rig.interrupts.data.contains(0x20) })
    #expect(transport.status.contains(.needsReset))
    #expect(!iommu.faults.isEmpty)
    iommu.unmapAll(rig.requester)
    let again = rig.place(scattered: true)
    #expect(rig.negotiate(transport, .platform))
    #expect(!transport.status.contains(.needsReset))
    let ring = again.ring(.platform, .literal)
    rig.start(transport, again)
    #expect(rig.echo(transport, again, ring))
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
