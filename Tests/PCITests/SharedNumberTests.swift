import DMA
import IOMMUInterface
import MachineKit
import PCI
import Testing
import VirtioTestKit

@Suite("Functions behind a bridge to a conventional bus") struct SharedNumberTests {
  private struct Rig {
    let rig: TestMachine
    let iommu = PageIOMMU()
    let bridge: PCIBridge
    let a: ScratchFunction
    let b: ScratchFunction
    /// What both are to the IOMMU.
    let shared = RequesterID(bus: 1, device: 0)

    init(late: Bool = false) throws {
      rig = try TestMachine.small()
      if !late { rig.bus.setIOMMU(iommu) }
      bridge = rig.bus.add(at: PCISlot(1)) { _ in PCIBridge(express: .bridgeToPCI) }
      a = rig.plug(4, behind: bridge)
      b = rig.plug(5, behind: bridge)
      rig.enumerate()
      if late { rig.bus.setIOMMU(iommu) }
      for device in UInt8(4)...5 { rig.command(RequesterID(bus: 1, device: device), [.busMaster]) }
    }
  }

  private func reaches(_ function: ScratchFunction, _ address: UInt64) -> Bool {
    function.reaches(address, through: function.master.translated)
  }

  @Test(
    "They are one endpoint for the IOMMU, whenever it comes: what one is given the other has, and loses with it (R081)",
    arguments: [false, true])
  func oneEndpoint(_ late: Bool) throws {
    let rig = try Rig(late: late)
    #expect(!rig.iommu.requesters.contains { $0.bus == 1 && $0 != rig.shared })
    #expect(rig.iommu.requesters.filter { $0 == rig.shared }.count == 1)
    #expect(rig.a.master.requester == rig.shared && rig.b.master.requester == rig.shared)
    #expect(rig.a.master.isBehindIOMMU && rig.b.master.isBehindIOMMU)
    // Under numbers of their own there is nothing to be had, so that they cannot be attached apart.
    rig.iommu.map(RequesterID(bus: 1, device: 4), DMAAddress(0x5000), byteCount: 4096, to: GuestAddress(0))
    #expect(!reaches(rig.a, 0x5000))
    rig.iommu.map(rig.shared, DMAAddress(0x7000), byteCount: 4096, to: GuestAddress(0))
    #expect(reaches(rig.a, 0x7000) && reaches(rig.b, 0x7000))
    #expect(
      rig.a.master.translated.table?.run(at: DMAAddress(0x7000)) != nil
        && rig.b.master.translated.table?.run(at: DMAAddress(0x7000)) != nil)
    rig.iommu.unmapAll(rig.shared)
    #expect(
      rig.a.master.translated.table?.run(at: DMAAddress(0x7000)) == nil
        && rig.b.master.translated.table?.run(at: DMAAddress(0x7000)) == nil)
    #expect(!reaches(rig.a, 0x7000) && !reaches(rig.b, 0x7000))
  }

  @Test("The topology says who shares a number (R081)")
  func topology() throws {
    let rig = try Rig()
    let alone = rig.rig.plug(3)
    let endpoints = rig.rig.bus.endpoints
    #expect(endpoints.map(\.requester.description) == ["00:01.0", "00:03.0", "01:00.0"])
    #expect(
      endpoints.last?.functions.map { ObjectIdentifier($0) } == [ObjectIdentifier(rig.a), ObjectIdentifier(rig.b)])
    // Software finds each at a place of its own all the same.
    #expect(rig.rig.read(RequesterID(bus: 1, device: 5), 0) == 0x5678_1234)
    withExtendedLifetime(alone) {}
  }

  @Test("Faults of both are reported under the shared number, and each has a gate of its own (R039, R081)")
  func gates() throws {
    let rig = try Rig()
    for function in [rig.a, rig.b] {
      function.master.translated.report(DMAFault(address: DMAAddress(0x9000), access: .read, reason: .unmapped))
    }
    #expect(rig.iommu.faults.map(\.requester) == [rig.shared, rig.shared])
    rig.iommu.map(rig.shared, DMAAddress(0x7000), byteCount: 4096, to: GuestAddress(0))
    rig.rig.command(RequesterID(bus: 1, device: 4), [])
    #expect(!reaches(rig.a, 0x7000) && reaches(rig.b, 0x7000))
    rig.rig.command(RequesterID(bus: 0, device: 1), [.memorySpace])
    #expect(!reaches(rig.b, 0x7000))
  }

  @Test(
    "The number follows the bridge's secondary bus, and a bridge without one lets nobody through (R030, R031, R081)")
  func renumbering() throws {
    let rig = try Rig()
    let new = RequesterID(bus: 9, device: 0)
    rig.iommu.map(rig.shared, DMAAddress(0x7000), byteCount: 4096, to: GuestAddress(0))
    rig.iommu.map(new, DMAAddress(0x8000), byteCount: 4096, to: GuestAddress(0))
    #expect(reaches(rig.a, 0x7000))
    rig.rig.write(RequesterID(bus: 0, device: 1), PCIRegister.primaryBus, 4, 0x0009_0900)
    #expect(rig.a.master.requester == new && rig.b.master.requester == new)
    #expect(!reaches(rig.a, 0x7000) && reaches(rig.a, 0x8000) && reaches(rig.b, 0x8000))
    rig.rig.write(RequesterID(bus: 0, device: 1), PCIRegister.primaryBus, 4, 0)
    #expect(!reaches(rig.a, 0x8000) && !reaches(rig.b, 0x8000))
    #expect(!rig.iommu.requesters.contains(new))
  }

  @Test("One that is unplugged reaches nothing, its neighbour goes on; with the bridge both go (R066, R081)")
  func unplug() throws {
    let rig = try Rig()
    rig.iommu.map(rig.shared, DMAAddress(0x7000), byteCount: 4096, to: GuestAddress(0))
    rig.rig.bus.remove(rig.a)
    #expect(!reaches(rig.a, 0x7000) && reaches(rig.b, 0x7000))
    // Changes of the others' route do not let it in.
    rig.rig.bus.setIOMMU(nil)
    #expect(!reaches(rig.a, 0x1000) && reaches(rig.b, 0x1000))
    rig.rig.bus.setIOMMU(rig.iommu)
    rig.rig.bus.remove(rig.bridge)
    #expect(!reaches(rig.b, 0x7000) && rig.iommu.requesters.isEmpty)
  }
}
