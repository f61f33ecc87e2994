import DMA
import IOMMUInterface
import MachineKit
import PCI
import Testing
import Virtio
import VirtioDrivers
import VirtioPCI
import VirtioServing
import VirtioTestKit

@Suite("A virtio function of PCI Express", .timeLimit(.minutes(10))) struct VirtioExpressTests {
  private var express: VirtioPCIOptions {
    .with {
      $0.iommuPlatform = .on
      $0.express = .rootComplexEndpoint
    }
  }

  private func deviceControl(_ rig: FunctionRig) throws -> Int {
    var at = Int(rig.access.readConfiguration(at: PCIRegister.capabilitiesPointer, width: 1))
    for _ in 0..<48 where at != 0 && rig.access.readConfiguration(at: at, width: 1) != 0x10 {
      at = Int(rig.access.readConfiguration(at: at + 1, width: 1))
    }
    try #require(at != 0)
    return at + PCIExpress.deviceControl
  }

  @Test(
    "A function level reset while chains are in flight: status is 0, nothing is written afterwards, the IOMMU's mappings stay and serve the next driver (R060, R061)",
    arguments: [false, true])
  func functionLevelReset(_ packed: Bool) throws {
    let iommu = PageIOMMU()
    // The device keeps chains, and would answer them some day.
    let rig = try FunctionRig(EchoDevice(mostHeld: 8), express, iommu: iommu)
    let transport = try rig.driver()
    let features: Features = packed ? [.version1, .accessPlatform, .ringPacked] : .platform
    let (place, ring) = try rig.running(transport, features, size: 16, scattered: true)
    for i in 0..<4 { _ = ring.post([LiteralDescriptor(place.data + 512 * i, 512, writable: true)]) }
    ring.publish()
    transport.notify(0, data: 0)
    #expect(rig.interrupts.poll { rig.function.control.counts[0].requests == 4 })
    let control = try deviceControl(rig)
    rig.access.writeConfiguration(at: control, width: 2, 0x8000)
    // From here on no byte changes, of buffers or of the ring.
    place.literal.write([UInt8](repeating: 0x5a, count: 2048), at: place.data)
    let areas = [place.layout.descriptorArea, place.layout.driverArea, place.layout.deviceArea]
    for area in areas { place.literal.write([UInt8](repeating: 0xa5, count: 256), at: area) }
    rig.access.writeConfiguration(
      at: PCIRegister.command, width: 2, UInt32(PCICommand([.memorySpace, .busMaster]).rawValue))
    rig.function.control.kick(0)
    #expect(!rig.function.control.isRunning(0) && rig.function.control.status == [])
    #expect(rig.function.control.queue(0)?.descriptorArea == 0 && rig.function.control.queue(0)?.isEnabled == false)
    #expect(place.literal.read(2048, at: place.data).allSatisfy { $0 == 0x5a })
    for area in areas { #expect(place.literal.read(256, at: area).allSatisfy { $0 == 0xa5 }) }
    #expect(iommu.releases.isEmpty && iommu.faults.isEmpty)
    // The BARs lost their places with everything else: firmware gives them new ones, and the old mappings serve.
    rig.machine.enumerate()
    let next = try rig.driver()
    #expect(next.status == [])
    #expect(rig.negotiate(next, features))
    let again = place.ring(features, .literal)
    rig.start(next, place)
    _ = again.post([LiteralDescriptor(place.data, 512, writable: true)])
    again.publish()
    next.notify(0, data: 0)
    #expect(rig.interrupts.poll { rig.function.control.counts[0].requests == 5 })
    next.status = []
  }

  @Test(
    "A chain whose address leads to the function's own registers, or another's, is refused with one fault, and neither is touched (R097, R098)",
    arguments: [false, true], [false, true])
  func registersAsTargets(_ own: Bool, _ isTranslated: Bool) throws {
    let iommu = PageIOMMU()
    let rig = try FunctionRig(EchoDevice(), isTranslated ? .platform : .with { $0.disableLegacy = .on }, iommu: iommu)
    let other = try rig.machine.add(EchoDevice(), .with { $0.disableLegacy = .on }, at: PCISlot(9), name: "other")
    rig.machine.enumerate()
    let target = own ? rig.requester : RequesterID(bus: 0, device: 9)
    let registers = try rig.machine.access(target).base(4)
    // The firmware may have moved the first function's windows.
    let transport = try PCIDriverTransport(rig.machine.access(rig.requester))
    let features: Features = isTranslated ? .platform : .plain
    let (place, ring) = try rig.running(transport, features, scattered: isTranslated)
    #expect(transport.enableMSIX([0x20, 0x21].map { InterruptMessage(address: FunctionRig.messageAddress, data: $0) }))
    // Mapped or not: the address of the registers themselves, or one that an IOMMU turns into it.
    let address: DMAAddress = isTranslated ? DMAAddress(0x6000_0000) : DMAAddress(registers)
    if isTranslated { iommu.map(rig.requester, address, byteCount: 4096, to: GuestAddress(registers)) }
    // The common structure: 20 is the device status, whose write with 0 would be a reset.
    let before = place.literal.read(256, at: place.data)
    for chain in [
      [LiteralDescriptor(address + 20, 1, writable: true)],
      [LiteralDescriptor(place.data, 64), LiteralDescriptor(address, 64, writable: true)],
      // What is read there must not be found in a buffer either.
      [LiteralDescriptor(address, 64), LiteralDescriptor(place.data, 256, writable: true)],
    ] {
      let faults = rig.function.control.counts[0].faults
      _ = ring.post(chain)
      ring.publish()
      transport.notify(0, data: 0)
      var used: [LiteralUsed] = []
      #expect(
        rig.interrupts.poll {
          used += ring.takeUsed()
          return !used.isEmpty
        })
      #expect(used.map(\.length) == [0])
      #expect(rig.interrupts.poll { rig.function.control.counts[0].faults == faults + 1 })
    }
    #expect(place.literal.read(256, at: place.data) == before)
    #expect(transport.status == [.acknowledge, .driver, .featuresOK, .driverOK] && other.control.status == [])
    #expect(iommu.faults.map(\.fault.address) == (isTranslated ? [address + 20, address, address] : []))
    // It goes on.
    #expect(rig.echo(transport, place, ring))
  }
}
