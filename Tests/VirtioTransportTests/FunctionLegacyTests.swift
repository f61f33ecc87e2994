import DMA
import IOMMUInterface
import MachineKit
import PCI
import Testing
import Virtio
import VirtioDrivers
import VirtioEntropy
import VirtioPCI
import VirtioServing
import VirtioTestKit

@Suite("The legacy interface of functions", .timeLimit(.minutes(10))) struct FunctionLegacyTests {
  @Test(
    "Queue addresses are page numbers in physical memory, and no IOMMU hears of them (R025, R027)",
    arguments: [false, true], [RingCase.Driver.literal, .driverQueue])
  func data(_ onlyLegacy: Bool, _ driver: RingCase.Driver) throws {
    let iommu = PageIOMMU()
    let rig = try FunctionRig(CounterDevice(), .with { $0.disableModern = onlyLegacy }, iommu: iommu)
    let transport = try rig.driver(legacy: true)
    #expect(transport.isLegacy)
    let features = transport.deviceFeatures.intersection([.indirectDescriptors, .eventIndex])
    let (place, ring) = rig.startLegacy(transport, features, driver: driver)
    #expect(transport.setVector(1, ofQueue: 0))
    #expect(rig.access.readBAR(0, at: 8, width: 4) == 0x100)
    for round in UInt8(0)..<10 {
      #expect(rig.echo(transport, place, ring, indirect: features.contains(.indirectDescriptors), seed: round))
    }
    #expect(iommu.lookUps(by: rig.requester) == 0 && iommu.faults.isEmpty)
  }

  @Test("The 32-bit feature word shows nothing above bit 31, whatever is offered (R026)")
  func features() throws {
    let rig = try FunctionRig(CounterDevice())
    let modern = try rig.driver().deviceFeatures
    let legacy = try rig.driver(legacy: true).deviceFeatures
    // ANY_LAYOUT is a legacy driver's only, and has to be offered (§6.3).
    #expect(!modern.contains(.anyLayout) && legacy.contains(.anyLayout))
    #expect(legacy.subtracting(.anyLayout).rawValue == modern.rawValue & 0xffff_ffff)
    #expect(legacy.contains(.indirectDescriptors))
    // Bits that were not offered are not accepted.
    let transport = try rig.driver(legacy: true)
    transport.accept(Features(word: 0xffff_ffff))
    #expect(rig.function.control.negotiatedFeatures == legacy)
  }

  @Test("A queue that is used before DRIVER_OK works, untranslated, and goes on afterwards (R027)")
  func early() throws {
    let rig = try FunctionRig(CounterDevice(), VirtioPCIOptions(), iommu: PageIOMMU())
    let transport = try rig.driver(legacy: true)
    transport.status = []
    transport.status = [.acknowledge, .driver]
    let place = rig.legacyPlace(transport.maxQueueSize(0))
    let ring = place.ring([], .literal)
    #expect(transport.setVector(1, ofQueue: 0))
    transport.enableQueue(0, place.layout)
    #expect(rig.echo(transport, place, ring, seed: 1))
    // Features that come late count from then on, and the queue keeps its place.
    transport.accept(.indirectDescriptors)
    #expect(rig.echo(transport, place, ring, indirect: true, seed: 2))
    transport.status = [.acknowledge, .driver, .driverOK]
    #expect(rig.echo(transport, place, ring, indirect: true, seed: 3))
    transport.enableQueue(0, QueueLayout(legacyAt: 0, size: 32))
    #expect(!rig.function.control.isRunning(0))
  }

  @Test("A driver that has given up starts no queue without a reset")
  func failed() throws {
    let rig = try FunctionRig(CounterDevice())
    let transport = try rig.driver(legacy: true)
    let (place, _) = rig.startLegacy(transport)
    #expect(rig.function.control.isRunning(0))
    transport.status = [.acknowledge, .driver, .driverOK, .failed]
    transport.enableQueue(0, place.layout)
    transport.notify(0, data: 0)
    #expect(!rig.function.control.isRunning(0))
  }

  @Test("The device's configuration moves when MSI-X is enabled, and is read in any width")
  func configuration() throws {
    let rig = try FunctionRig(CounterDevice())
    let transport = try rig.driver(messages: false, legacy: true)
    #expect(rig.access.readBAR(0, at: 20, width: 4) == 0x3333_4444)
    #expect(rig.access.readBAR(0, at: 21, width: 1) == 0x44)
    #expect(rig.access.readBAR(0, at: 22, width: 2) == 0x3333)
    #expect(transport.enableMSIX([InterruptMessage(address: 0xfee0_0000, data: 0)]))
    #expect(rig.access.readBAR(0, at: 24, width: 4) == 0x3333_4444)
    #expect(rig.access.readBAR(0, at: 20, width: 4) == 0)
    #expect(transport.configuration(4, at: 4) == [0x22, 0x22, 0x11, 0x11])
  }

  @Test("A pin tells a legacy driver, too, and a reset forgets everything (R060)")
  func pin() throws {
    let rig = try FunctionRig(CounterDevice())
    let transport = try rig.driver(messages: false, legacy: true)
    let (place, ring) = rig.startLegacy(transport)
    #expect(rig.echo(transport, place, ring))
    #expect(rig.interrupts.wait { rig.interrupts.isAsserted(3) })
    transport.status = []
    #expect(!rig.interrupts.isAsserted(3) && !rig.function.control.isRunning(0))
    #expect(rig.access.readBAR(0, at: 8, width: 4) == 0)
    // A modern driver is next.
    let modern = try rig.driver()
    let (again, ring2) = try rig.running(modern, .plain, scattered: false)
    #expect(rig.echo(modern, again, ring2))
  }

  @Test("A driver finds what there is: structures, else the legacy registers, else an error")
  func detection() throws {
    let legacy = try FunctionRig(EntropyDevice(), .with { $0.disableModern = true })
    #expect(try PCIDriverTransport(legacy.access).isLegacy)
    let modern = try FunctionRig(EntropyDevice(), .with { $0.disableLegacy = .on })
    #expect(try !PCIDriverTransport(modern.access).isLegacy)
    #expect(throws: PCITransportError.noInterface) { _ = try PCIDriverTransport(modern.access, legacy: true) }
    let other = try FunctionRig(EntropyDevice(), .with { $0.rename = { $0.vendorID = 0x8086 } })
    #expect(throws: PCITransportError.self) { _ = try PCIDriverTransport(other.access) }
    #expect(try PCIDriverTransport(legacy.access).deviceID == .entropy)
  }
}
