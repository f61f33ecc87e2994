import DMA
import IOMMUInterface
import MachineKit
import PCI
import Synchronization
import Testing
import VirtioTestKit

@Suite("PCI Express") struct ExpressTests {
  let first = RequesterID(bus: 0, device: 3)
  let rig: TestMachine
  let iommu = PageIOMMU()

  init() throws { rig = try TestMachine.small() }

  /// Where a capability is.
  private func find(_ id: UInt32, _ rig: TestMachine, _ requester: RequesterID) -> Int? {
    var at = Int(rig.read(requester, PCIRegister.capabilitiesPointer, 1))
    for _ in 0..<48 where at != 0 {
      if rig.read(requester, at, 1) == id { return at }
      at = Int(rig.read(requester, at + 1, 1))
    }
    return nil
  }

  @Test("The capability says what the function is, that it can be reset, and keeps what it must")
  func capability() throws {
    let function = rig.plug(3, express: .endpoint)
    let at = try #require(find(0x10, rig, first))
    #expect(rig.read(first, at + PCIExpress.capabilities, 2) == 0x0002)
    #expect(rig.read(first, at + PCIExpress.deviceCapabilities) & PCIExpress.hasFunctionLevelReset != 0)
    #expect(rig.read(first, at + PCIExpress.deviceControl, 2) == 0x2810)
    rig.write(first, at + PCIExpress.deviceCapabilities, 4, 0)
    rig.write(first, at + PCIExpress.deviceControl, 2, 0x7fff)
    #expect(rig.read(first, at + PCIExpress.deviceControl, 2) == 0x7fff)
    #expect(rig.read(first, at + PCIExpress.deviceCapabilities) & PCIExpress.hasFunctionLevelReset != 0)
    #expect(function.resets.load(ordering: .relaxed) == 0)
    #expect(rig.read(first, at + 0x0c) == 0x11)
    rig.plug(4, express: .rootComplexEndpoint)
    let second = RequesterID(bus: 0, device: 4)
    #expect(rig.read(second, try #require(find(0x10, rig, second)) + 2, 2) == 0x0092)
  }

  @Test("There are 4096 bytes: extended capabilities are listed from byte 256 on, and changed where they may be")
  func extended() throws {
    rig.plug(3, express: .endpoint)
    // Serial number, version 1, next at 0x10c; then vendor specific, version 2, the last.
    #expect(rig.read(first, 0x100) == 0x10c1_0003)
    #expect(rig.read(first, 0x104) == 0x0403_0201)
    #expect(rig.read(first, 0x10c) == 0x0002_000b)
    #expect(rig.read(first, 0xffc) == 0)
    rig.write(first, 0x110, 4, 0xffff_ffff)
    #expect(rig.read(first, 0x110) == 0x00cc_fbaa)
    // The same through the memory window of configuration accesses: bus, device and function, then twelve bits of
    // register.
    let base = UInt64(first.rawValue) << 12
    #expect(rig.bus.read(ecam: base + 0x10c, width: 4) == 0x0002_000b)
    rig.bus.write(ecam: base + 0x111, width: 1, 0)
    #expect(rig.bus.read(ecam: base + 0x110, width: 4) == 0x00cc_0baa)
    #expect(rig.bus.read(ecam: base + 0xffd, width: 4) == .max)
    // Through the ports no more than 256 bytes can be named.
    rig.bus.write(io: 0xcf8, width: 4, 0x8000_0000 | UInt32(first.rawValue) << 8 | 0xfc)
    #expect(rig.bus.read(io: 0xcfc, width: 4) == rig.read(first, 0xfc))
  }

  @Test("A function without the capability has 256 bytes, one with no extended capability an empty list")
  func without() throws {
    rig.plug(3)
    #expect(rig.read(first, 0x100) == .max && find(0x10, rig, first) == nil)
    _ = rig.bus.add(at: PCISlot(1)) { _ in PCIBridge(express: .rootPort) }
    let port = RequesterID(bus: 0, device: 1)
    #expect(rig.read(port, 0x100) == 0)
    let at = try #require(find(0x10, rig, port))
    #expect(rig.read(port, at + 2, 2) == 0x0042)
    // A port has no function level reset.
    #expect(rig.read(port, at + PCIExpress.deviceCapabilities) & PCIExpress.hasFunctionLevelReset == 0)
    rig.command(port, [.busMaster])
    rig.write(port, at + PCIExpress.deviceControl, 2, 0x8000)
    #expect(rig.read(port, PCIRegister.command, 2) == 4)
  }

  @Test(
    "A function level reset ends the function's accesses, puts its registers back, and leaves the IOMMU's mappings and its neighbour (R060, R061)",
    arguments: [1, 2, 4])
  func functionLevelReset(_ width: Int) throws {
    rig.bus.setIOMMU(iommu)
    let function = rig.plug(3, express: .endpoint)
    let neighbour = rig.plug(3, function: 1, express: .endpoint)
    let second = RequesterID(bus: 0, device: 3, function: 1)
    for requester in [first, second] {
      iommu.map(requester, DMAAddress(0x7000), byteCount: 4096, to: GuestAddress(0))
      rig.command(requester, [.busMaster, .memorySpace])
    }
    rig.write(first, PCIRegister.bar(4), 4, 0xe000_0000)
    #expect(function.reaches(0x7000, through: function.master.translated))
    let control = try #require(find(0x10, rig, first)) + PCIExpress.deviceControl
    switch width {
    case 1: rig.write(first, control + 1, 1, 0x80)
    case 2: rig.write(first, control, 2, 0x8000)
    default: rig.write(first, control, 4, 0x8000)
    }
    #expect(function.resets.load(ordering: .relaxed) == 1 && neighbour.resets.load(ordering: .relaxed) == 0)
    #expect(
      !function.reaches(0x7000, through: function.master.translated)
        && !function.reaches(0, through: function.master.physical))
    #expect(neighbour.reaches(0x7000, through: neighbour.master.translated))
    #expect(rig.read(first, PCIRegister.command, 2) == 0 && rig.read(first, PCIRegister.bar(4)) == 0)
    #expect(rig.read(first, control, 2) == 0x2810)
    #expect(rig.read(first, PCIRegister.headerType, 1) == 0x80)
    #expect(iommu.releases.isEmpty && iommu.adoptions.count == 2)
    rig.command(first, [.busMaster])
    #expect(function.reaches(0x7000, through: function.master.translated))
  }
}
