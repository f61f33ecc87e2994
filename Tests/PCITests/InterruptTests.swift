import IOMMUInterface
import MachineKit
import PCI
import Testing
import VirtioTestKit

@Suite("Interrupts of functions") struct InterruptTests {
  let first = RequesterID(bus: 0, device: 3)

  let rig: TestMachine
  let function: ScratchFunction
  /// Where the function's MSI-X table is.
  let table: UInt64 = 0xe000_0000

  init() throws {
    rig = try TestMachine.small()
    function = rig.plug(3)
    rig.write(first, PCIRegister.bar(1), 4, UInt32(table))
    rig.command(first, [.memorySpace, .busMaster])
  }

  private func enable(_ control: UInt32) { rig.write(first, 0x4a, 2, control) }
  private func entry(_ vector: UInt64, masked: Bool) {
    rig.bus.write(memory: table + 16 * vector, width: 8, 0xfee0_0003 | 0x1_0000_0000)
    rig.bus.write(memory: table + 16 * vector + 8, width: 4, 0x40 + vector)
    rig.bus.write(memory: table + 16 * vector + 12, width: 4, masked ? 1 : 0)
  }

  @Test("A vector sends its message, under the function's number, only while MSI-X is enabled")
  func messages() throws {
    entry(2, masked: false)
    function.msix.signal(2)
    #expect(rig.interrupts.messages.isEmpty)
    enable(0x8000)
    #expect(function.configuration.isMSIXEnabled)
    #expect(rig.read(first, 0x4a, 2) == 0x8003)
    function.msix.signal(2)
    function.msix.signal(4)
    function.msix.signal(-1)
    #expect(rig.interrupts.messages == [InterruptLog.Message(address: 0x1_fee0_0000, data: 0x42, requester: first)])
  }

  @Test("What is signalled under a mask is pending, and is delivered once when both masks are gone")
  func masks() throws {
    entry(1, masked: true)
    enable(0x8000)
    function.msix.signal(1)
    function.msix.signal(1)
    #expect(rig.bus.read(memory: table + 2048, width: 8) == 2)
    rig.bus.write(memory: table + 2048, width: 8, 0)
    #expect(rig.bus.read(memory: table + 2048, width: 8) == 2)
    enable(0xc000)
    rig.bus.write(memory: table + 28, width: 4, 0)
    #expect(rig.interrupts.messages.isEmpty)
    enable(0x8000)
    #expect(rig.interrupts.messages.map(\.data) == [0x41])
    #expect(rig.bus.read(memory: table + 2048, width: 8) == 0)
  }

  @Test("The table takes dwords and quadwords; anything else, and anything past its end, changes nothing")
  func tableAccesses() throws {
    entry(0, masked: true)
    rig.bus.write(memory: table + 1, width: 1, 0xff)
    rig.bus.write(memory: table + 2, width: 4, 0xff)
    rig.bus.write(memory: table + 64, width: 8, .max)
    #expect(rig.bus.read(memory: table, width: 8) == 0x1_fee0_0000)
    #expect(rig.bus.read(memory: table + 1, width: 2) == 0xe000)
    #expect(rig.bus.read(memory: table + 12, width: 4) == 1)
    #expect(rig.bus.read(memory: table + 64, width: 8) == 0)
    rig.bus.reset()
    #expect(rig.bus.read(memory: table, width: 8) == 0xffff_ffff_ffff_ffff)
    rig.write(first, PCIRegister.bar(1), 4, 0xe000_0000)
    rig.command(first, [.memorySpace])
    #expect(rig.bus.read(memory: table, width: 8) == 0)
    #expect(rig.bus.read(memory: table + 12, width: 4) == 1)
  }

  @Test("A function that may not be bus master sends no message (R039)")
  func closed() throws {
    entry(0, masked: false)
    enable(0x8000)
    rig.command(first, [.memorySpace])
    function.msix.signal(0)
    #expect(rig.interrupts.messages.isEmpty)
    rig.command(first, [.memorySpace, .busMaster])
    function.msix.signal(0)
    #expect(rig.interrupts.messages.count == 1)
  }

  @Test("A message gets through where the function's data does not: the bit has no say in it (R037)")
  func messagesPassTheIOMMU() throws {
    rig.bus.setIOMMU(PageIOMMU())
    entry(0, masked: false)
    enable(0x8000)
    #expect(!function.reaches(0x1000, through: function.master.translated))
    function.msix.signal(0)
    #expect(rig.interrupts.messages.count == 1)
  }

  @Test("The pin follows the function's wish unless it is disabled, and the status bit follows the wish alone")
  func pin() throws {
    function.intx.setWanted(true)
    #expect(rig.interrupts.asserted == ["3 a"])
    #expect(rig.read(first, PCIRegister.status, 2) & 8 == 8)
    rig.command(first, [.memorySpace, .busMaster, .interruptDisable])
    #expect(rig.interrupts.asserted.isEmpty)
    #expect(rig.read(first, PCIRegister.status, 2) & 8 == 8)
    rig.command(first, [.memorySpace, .busMaster])
    #expect(rig.interrupts.asserted == ["3 a"])
    function.intx.setWanted(false)
    #expect(rig.interrupts.asserted.isEmpty)
    #expect(rig.read(first, PCIRegister.status, 2) & 8 == 0)
  }

  @Test("Pins behind a bridge turn with the device number, and one wire is asserted while any function asserts it")
  func wires() throws {
    let rig = try TestMachine.small()
    let bridge = rig.bus.add(at: PCISlot(5)) { _ in PCIBridge() }
    let (a, b, c) = (
      rig.plug(1, behind: bridge), rig.plug(0, behind: bridge, pin: .b), rig.plug(7, behind: bridge, pin: .d)
    )
    a.intx.setWanted(true)
    b.intx.setWanted(true)
    #expect(rig.interrupts.asserted == ["5 b"])
    c.intx.setWanted(true)
    #expect(rig.interrupts.asserted == ["5 b", "5 c"])
    a.intx.setWanted(false)
    #expect(rig.interrupts.asserted == ["5 b", "5 c"])
    rig.bus.remove(b)
    #expect(rig.interrupts.asserted == ["5 c"])
    rig.bus.remove(bridge)
    #expect(rig.interrupts.asserted.isEmpty)
  }
}
