import IOMMUInterface
import MachineKit
import PCI
import Synchronization
import Testing

@Suite("Address decoding") struct DecodeTests {
  let first = RequesterID(bus: 0, device: 3)
  let rig: TestMachine

  init() throws { rig = try TestMachine.small() }

  @Test("A BAR is decoded where it is put, while the command register says so")
  func enables() throws {
    rig.plug(3)
    rig.write(first, PCIRegister.bar(0), 4, 0x2000)
    rig.write(first, PCIRegister.bar(4), 4, 0xe000_0000)
    #expect(rig.bus.write(memory: 0xe000_0010, width: 4, 1) == false)
    #expect(rig.bus.read(memory: 0xe000_0010, width: 4) == 0xffff_ffff)
    rig.command(first, [.memorySpace])
    #expect(rig.bus.write(memory: 0xe000_0010, width: 4, 0x1_2345_6789))
    #expect(rig.bus.read(memory: 0xe000_0010, width: 4) == 0x2345_6789)
    #expect(rig.bus.read(io: 0x2004, width: 2) == 0xffff)
    rig.command(first, [.memorySpace, .ioSpace])
    #expect(rig.bus.write(io: 0x2004, width: 2, 0x77))
    #expect(rig.bus.read(io: 0x2004, width: 2) == 0x77)
    rig.command(first, [])
    #expect(rig.bus.read(memory: 0xe000_0010, width: 8) == .max)
    #expect(rig.bus.read(io: 0x2004, width: 1) == 0xff)
  }

  @Test("A BAR that is moved while it is decoded answers at the new place only")
  func moves() throws {
    rig.plug(3)
    rig.command(first, [.memorySpace])
    rig.write(first, PCIRegister.bar(2), 4, 0xe000_0000)
    rig.bus.write(memory: 0xe000_0008, width: 8, 42)
    rig.write(first, PCIRegister.bar(3), 4, 0x40)
    #expect(rig.bus.read(memory: 0xe000_0008, width: 8) == .max)
    #expect(rig.bus.read(memory: 0x40_e000_0008, width: 8) == 42)
    // Up to the last byte, and not across it.
    let end: UInt64 = 0x40_e000_0000 + ScratchFunction.wideSize
    #expect(rig.bus.write(memory: end - 4, width: 4, 5))
    #expect(rig.bus.write(memory: end - 4, width: 8, 5) == false)
    // At the very top of the address space nothing wraps.
    rig.write(first, PCIRegister.bar(2), 4, .max)
    rig.write(first, PCIRegister.bar(3), 4, .max)
    #expect(rig.bus.read(memory: .max, width: 1) == 0)
    #expect(rig.bus.read(memory: .max, width: 8) == .max)
    #expect(rig.bus.read(memory: 0x10, width: 3) == 0xff_ffff)
  }

  @Test("Firmware gives every BAR a place, behind bridges too, and every access arrives there")
  func enumeration() throws {
    let bridge = rig.bus.add(at: PCISlot(1)) { _ in PCIBridge() }
    let inner = rig.bus.add(at: PCISlot(2), behind: bridge) { _ in PCIBridge() }
    let functions = [
      rig.plug(3), rig.plug(4, behind: bridge), rig.plug(0, behind: inner), rig.plug(0, function: 2, behind: inner),
    ]
    let found = rig.enumerate()
    #expect(found.map(\.requester.description) == ["00:01.0", "01:02.0", "02:00.0", "02:00.2", "01:04.0", "00:03.0"])
    for (number, function) in zip(["00:03.0", "01:04.0", "02:00.0", "02:00.2"], functions) {
      let one = try #require(found.first { $0.requester.description == number })
      #expect(one.windows.map(\.index) == [0, 1, 2, 4])
      #expect(function.master.requester == one.requester)
      for window in one.windows where window.index != 1 {
        let value = UInt64(one.requester.rawValue) << 8 | UInt64(window.index)
        if window.isIO {
          #expect(rig.bus.write(io: UInt32(window.base), width: 4, UInt32(value)))
        } else {
          #expect(rig.bus.write(memory: window.base, width: 4, value))
        }
        #expect(function.writes.withLock { $0[window.index]?[0] } == value, "\(number) BAR \(window.index)")
      }
    }
    // A bridge that no longer forwards hides what is behind it.
    let behind = try #require(found.first { $0.requester.description == "01:04.0" })
    rig.command(RequesterID(bus: 0, device: 1), [.busMaster])
    #expect(rig.bus.read(memory: behind.windows[1].base, width: 4) == 0xffff_ffff)
    #expect(rig.read(behind.requester, 0, 2) == 0x1234)
  }

  @Test("A secondary bus reset resets what is behind the bridge, and only that")
  func secondaryReset() throws {
    let bridge = rig.bus.add(at: PCISlot(1)) { _ in PCIBridge() }
    let (behind, beside) = (rig.plug(0, behind: bridge), rig.plug(2))
    rig.enumerate()
    rig.write(RequesterID(bus: 0, device: 1), PCIRegister.bridgeControl, 2, 0x40)
    rig.write(RequesterID(bus: 0, device: 1), PCIRegister.bridgeControl, 2, 0)
    #expect(behind.resets.load(ordering: .relaxed) == 1)
    #expect(beside.resets.load(ordering: .relaxed) == 0)
    #expect(behind.configuration.command == [])
  }
}
