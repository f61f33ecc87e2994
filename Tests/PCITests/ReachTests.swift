import DMA
import IOMMUInterface
import MachineKit
import PCI
import Synchronization
import Testing
import VirtioTestKit

@Suite("Who reaches what") struct ReachTests {
  let first = RequesterID(bus: 0, device: 3)
  let rig: TestMachine
  let iommu = PageIOMMU()

  init() throws { rig = try TestMachine.small() }

  @Test(
    "The bus master enable bit opens and closes memory, with an IOMMU and without (R039)", arguments: [false, true])
  func busMaster(_ behindIOMMU: Bool) throws {
    let function = rig.plug(3)
    if behindIOMMU {
      iommu.map(first, DMAAddress(0), byteCount: 1 << 20, to: GuestAddress(0))
      rig.bus.setIOMMU(iommu)
    }
    #expect(!function.reaches(0x1000, through: function.master.translated))
    #expect(!function.reaches(0x1000, through: function.master.physical))
    rig.command(first, [.busMaster])
    #expect(function.reaches(0x1000, through: function.master.translated))
    #expect(function.reaches(0x1000, through: function.master.physical))
    rig.command(first, [.memorySpace])
    #expect(!function.reaches(0x1000, through: function.master.translated))
    #expect(!function.reaches(0x1000, through: function.master.physical))
  }

  @Test("A bridge that may not be bus master keeps those behind it from memory (R039)")
  func bridgeBusMaster() throws {
    let bridge = rig.bus.add(at: PCISlot(1)) { _ in PCIBridge() }
    let function = rig.plug(0, behind: bridge)
    rig.enumerate()
    let behind = RequesterID(bus: 1, device: 0)
    rig.command(behind, [.busMaster])
    #expect(function.reaches(0x1000, through: function.master.translated))
    rig.command(RequesterID(bus: 0, device: 1), [.memorySpace])
    #expect(!function.reaches(0x1000, through: function.master.translated))
    #expect(!function.reaches(0x1000, through: function.master.physical))
  }

  @Test("Without an IOMMU the hook answers with physical memory, and all of it (R005, R033)")
  func physical() throws {
    let function = rig.plug(3)
    rig.command(first, [.busMaster])
    #expect(!function.master.isBehindIOMMU)
    #expect(function.reaches((1 << 20) - 1, through: function.master.translated, for: .write))
    #expect(!function.reaches(1 << 20, through: function.master.translated))
  }

  @Test("An IOMMU that comes after the function counts from then on, and no longer once it is gone (R032)")
  func lateIOMMU() throws {
    let function = rig.plug(3)
    rig.command(first, [.busMaster])
    let space = function.master.translated
    rig.bus.setIOMMU(iommu)
    #expect(iommu.requesters == [first] && function.master.isBehindIOMMU)
    #expect(!function.reaches(0x1000, through: space))
    iommu.map(first, DMAAddress(0x7000_0000), byteCount: 4096, to: GuestAddress(0x2000), .read)
    #expect(function.reaches(0x7000_0fff, through: space))
    #expect(!function.reaches(0x7000_0000, through: space, for: .write))
    #expect(function.reaches(0x1000, through: function.master.physical))
    rig.bus.setIOMMU(nil)
    #expect(iommu.requesters.isEmpty && !function.master.isBehindIOMMU)
    #expect(function.reaches(0x1000, through: space))
    #expect(!function.reaches(0x7000_0000, through: space))
  }

  @Test("A function that bypasses the IOMMU is never adopted, whenever the unit comes (R036, R079)")
  func bypass() throws {
    let before = rig.plug(3, bypassing: true)
    rig.bus.setIOMMU(iommu)
    let after = rig.plug(4, bypassing: true)
    let translated = rig.plug(5)
    for device in UInt8(3)...5 { rig.command(RequesterID(bus: 0, device: device), [.busMaster]) }
    #expect(iommu.requesters == [RequesterID(bus: 0, device: 5)])
    #expect(before.reaches(0x1000, through: before.master.translated))
    #expect(after.reaches(0x1000, through: after.master.translated))
    #expect(!translated.reaches(0x1000, through: translated.master.translated))
  }

  @Test("A function's number follows the secondary bus number as the guest writes it, and so do its mappings (R030)")
  func renumbering() throws {
    rig.bus.setIOMMU(iommu)
    let bridge = rig.bus.add(at: PCISlot(1)) { _ in PCIBridge() }
    let function = rig.plug(0, behind: bridge)
    rig.enumerate()
    let (old, new, port) = (
      RequesterID(bus: 1, device: 0), RequesterID(bus: 9, device: 0), RequesterID(bus: 0, device: 1)
    )
    rig.command(old, [.busMaster])
    iommu.map(old, DMAAddress(0), byteCount: 4096, to: GuestAddress(0))
    iommu.map(new, DMAAddress(0x1000), byteCount: 4096, to: GuestAddress(0))
    #expect(function.reaches(0, through: function.master.translated))
    rig.write(port, PCIRegister.primaryBus, 4, 0x0009_0900)
    #expect(function.master.requester == new)
    #expect(rig.read(old, 0) == .max && rig.read(new, 0) == 0x5678_1234)
    #expect(!function.reaches(0, through: function.master.translated))
    #expect(function.reaches(0x1000, through: function.master.translated))
    #expect(iommu.releases == [old] && iommu.requesters.contains(new))
  }

  @Test("A number outside its bridges' ranges faults rather than meeting somebody else's mappings (R031)")
  func outOfRange() throws {
    rig.bus.setIOMMU(iommu)
    let outer = rig.bus.add(at: PCISlot(1)) { _ in PCIBridge() }
    let inner = rig.bus.add(at: PCISlot(2), behind: outer) { _ in PCIBridge() }
    let function = rig.plug(0, behind: inner)
    rig.enumerate()
    let own = RequesterID(bus: 2, device: 0)
    for bus in UInt8(0)...255 {
      iommu.map(RequesterID(bus: bus, device: 0), DMAAddress(0), byteCount: 4096, to: GuestAddress(0))
    }
    rig.command(own, [.busMaster])
    #expect(function.reaches(0, through: function.master.translated))
    // The outer bridge no longer forwards bus 2.
    rig.write(RequesterID(bus: 0, device: 1), PCIRegister.subordinateBus, 1, 1)
    #expect(!function.reaches(0, through: function.master.translated))
    #expect(!iommu.requesters.contains(own))
    rig.write(RequesterID(bus: 0, device: 1), PCIRegister.subordinateBus, 1, 7)
    #expect(function.reaches(0, through: function.master.translated))
    // A secondary number above the subordinate one.
    rig.write(RequesterID(bus: 1, device: 2), PCIRegister.primaryBus, 4, 0x0003_0501)
    #expect(!function.reaches(0, through: function.master.translated))
  }

  @Test("Two functions programmed under one number: the second reaches nothing (R031)")
  func sameNumber() throws {
    rig.bus.setIOMMU(iommu)
    let bridges = [UInt8(1), 2].map { slot in rig.bus.add(at: PCISlot(slot)) { _ in PCIBridge() } }
    let (a, b) = (rig.plug(0, behind: bridges[0]), rig.plug(0, behind: bridges[1]))
    rig.enumerate()
    for bus in UInt8(1)...2 {
      rig.command(RequesterID(bus: bus, device: 0), [.busMaster])
      iommu.map(RequesterID(bus: bus, device: 0), DMAAddress(0), byteCount: 4096, to: GuestAddress(0))
    }
    #expect(a.reaches(0, through: a.master.translated) && b.reaches(0, through: b.master.translated))
    rig.write(RequesterID(bus: 0, device: 2), PCIRegister.primaryBus, 4, 0x0001_0100)
    #expect(a.reaches(0, through: a.master.translated))
    #expect(!b.reaches(0, through: b.master.translated))
  }

  @Test("A function that is taken out reaches nothing, and its successor starts with nothing of it (R066)")
  func unplug() throws {
    rig.bus.setIOMMU(iommu)
    let old = rig.plug(3)
    iommu.map(first, DMAAddress(0), byteCount: 4096, to: GuestAddress(0))
    rig.command(first, [.busMaster])
    let (translated, physical) = (old.master.translated, old.master.physical)
    #expect(old.reaches(0, through: translated))
    rig.bus.remove(old)
    #expect(!old.reaches(0, through: translated) && !old.reaches(0, through: physical))
    #expect(iommu.requesters.isEmpty)
    #expect(rig.read(first, 0) == .max)
    #expect(old.resets.load(ordering: .relaxed) == 1)
    let new = rig.plug(3)
    #expect(!new.reaches(0, through: new.master.translated))
    #expect(iommu.requesters == [first])
  }

  @Test("A function plugged in while the machine runs is adopted at once (R067)")
  func hotPlug() throws {
    rig.bus.setIOMMU(iommu)
    let bridge = rig.bus.add(at: PCISlot(1)) { _ in PCIBridge() }
    rig.enumerate()
    rig.write(RequesterID(bus: 0, device: 1), PCIRegister.primaryBus, 4, 0x0004_0400)
    let function = rig.plug(6, behind: bridge)
    #expect(iommu.requesters.contains(RequesterID(bus: 4, device: 6)))
    #expect(function.master.isBehindIOMMU)
    #expect(rig.bus.functions.map(\.requester.description) == ["00:01.0", "04:06.0"])
  }
}
