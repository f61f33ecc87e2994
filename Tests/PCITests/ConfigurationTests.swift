import IOMMUInterface
import MachineKit
import PCI
import Testing

@Suite("Configuration space") struct ConfigurationTests {
  let first = RequesterID(bus: 0, device: 3)
  let rig: TestMachine

  init() throws {
    rig = try TestMachine.small()
    rig.plug(3)
  }

  @Test("A function shows its identity in bytes, words and dwords, and absent ones are all ones")
  func identity() {
    #expect(rig.read(first, 0) == 0x5678_1234)
    #expect(rig.read(first, 2, 2) == 0x5678)
    #expect(rig.read(first, 1, 1) == 0x12)
    #expect(rig.read(first, PCIRegister.revisionID) == 0x0102_0303)
    #expect(rig.read(first, PCIRegister.subsystemVendorID) == 0xef01_abcd)
    #expect(rig.read(first, PCIRegister.interruptPin, 1) == 1)
    #expect(rig.read(RequesterID(bus: 0, device: 4), 0) == 0xffff_ffff)
    #expect(rig.read(RequesterID(bus: 1, device: 3), 0, 2) == 0xffff)
    #expect(rig.read(first, 0x100) == 0xffff_ffff)
  }

  @Test("Software changes what it may and nothing else, with any writes")
  func masks() {
    for at in stride(from: 0, to: 4096, by: 4) where !(0x10..<0x28).contains(at) { rig.write(first, at, 4, .max) }
    #expect(rig.read(first, 0) == 0x5678_1234)
    #expect(rig.read(first, PCIRegister.headerType, 1) == 0)
    #expect(rig.read(first, PCIRegister.command, 2) == 0x0547)
    #expect(rig.read(first, PCIRegister.interruptLine, 2) == 0x01ff)
    // The vendor capability {9, next, 6, aa, bb, cc}: of the byte bb the upper half is writable.
    #expect(rig.read(first, 0x40) == 0xaa06_4809)
    #expect(rig.read(first, 0x44, 2) == 0xccfb)
    rig.write(first, 3, 4, 0)
    rig.write(first, -4, 4, 0)
    rig.write(first, 1 << 40, 2, 0)
    #expect(rig.read(first, 0) == 0x5678_1234)
  }

  @Test("The capabilities form a list that ends")
  func capabilities() {
    #expect(rig.read(first, PCIRegister.status, 2) & 0x10 != 0)
    var at = Int(rig.read(first, PCIRegister.capabilitiesPointer, 1))
    var ids: [UInt32] = []
    while at != 0, ids.count < 48 {
      ids.append(rig.read(first, at, 1))
      at = Int(rig.read(first, at + 1, 1))
    }
    #expect(ids == [9, 0x11])
  }

  @Test("All ones written to a BAR read back as its size and kind; a 64-bit one takes two registers")
  func sizing() {
    for index in 0..<6 { rig.write(first, PCIRegister.bar(index), 4, .max) }
    #expect(
      (0..<6).map { rig.read(first, PCIRegister.bar($0)) } == [
        0xffff_ffe1, 0xffff_f000, 0xffff_000c, 0xffff_ffff, 0xffff_f000, 0,
      ])
  }

  @Test("ECAM and the ports 0xCF8 and 0xCFC reach the same registers")
  func mechanisms() {
    let ecam: UInt64 = 3 << 15
    #expect(rig.bus.read(ecam: ecam, width: 4) == 0x5678_1234)
    #expect(rig.bus.read(ecam: ecam + 2, width: 2) == 0x5678)
    #expect(rig.bus.read(ecam: 1 << 28, width: 4) == .max)
    rig.bus.write(ecam: ecam + 0x3c, width: 1, 7)
    #expect(rig.bus.write(io: 0xcf8, width: 4, 0x8000_183c))
    #expect(rig.bus.read(io: 0xcf8, width: 4) == 0x8000_183c)
    #expect(rig.bus.read(io: 0xcfc, width: 2) == 0x0107)
    #expect(rig.bus.read(io: 0xcfd, width: 1) == 1)
    rig.bus.write(io: 0xcfc, width: 1, 9)
    #expect(rig.read(first, 0x3c, 1) == 9)
    // Without the enable bit the data port reaches no register.
    rig.bus.write(io: 0xcf8, width: 4, 0x0000_183c)
    #expect(rig.bus.read(io: 0xcfc, width: 4) == .max)
  }

  @Test("Function 0 says that there are others, until they are gone")
  func multifunction() {
    #expect(rig.read(first, PCIRegister.headerType, 1) == 0)
    let other = rig.plug(3, function: 5)
    #expect(rig.read(first, PCIRegister.headerType, 1) == 0x80)
    rig.bus.remove(other)
    #expect(rig.read(first, PCIRegister.headerType, 1) == 0)
    #expect(!rig.bus.isFree(PCISlot(3)))
    #expect(rig.bus.isFree(PCISlot(3, function: 5)))
  }
}
