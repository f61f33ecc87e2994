import DriverDMA
import HostIO
import IOMMUInterface
import MachineKit
import PCI
import Testing
import Virtio
import VirtioBlock
import VirtioDrivers
import VirtioPCI
import VirtioServing

/// A disk in memory as a PCI function behind a unit, and everything its driver needs.
final class PCIRig {
  let rig: UnitRig
  private let machine: TestMachine
  var bus: PCIBus { machine.bus }
  var interrupts: InterruptLog { machine.interrupts }
  let transport: PCIDriverTransport
  private let file: MemoryFile
  private let function: VirtioPCIFunction

  init(_ kind: UnitKind, iommuPlatform: Bool = true, isUnitLate: Bool = false) throws {
    rig = try UnitRig(kind, endpoint: false)
    machine = try TestMachine(memory: rig.memory, iommu: isUnitLate ? nil : rig.unit)
    file = try MemoryFile(name: "disk", size: 4 << 20)
    function = try machine.add(
      BlockDevice(BlockOptions(inMemory: file)), .with { $0.iommuPlatform = iommuPlatform ? .on : .off },
      at: PCISlot(UnitRig.requester.device))
    if isUnitLate { machine.bus.setIOMMU(rig.unit) }
    machine.enumerate()
    transport = try PCIDriverTransport(machine.access(UnitRig.requester))
    let messages = (0...function.control.queueCount).map { InterruptMessage(address: 0xfee0_0000, data: UInt32($0)) }
    #expect(transport.enableMSIX(messages) && transport.setConfigurationVector(0) && transport.setVector(1, ofQueue: 0))
  }

  func driver(_ mapper: any DMAMapper, packed: Bool = false) throws(DriverError) -> BlockDriver {
    try BlockDriver(
      transport, on: DriverPlatform(pages: rig.pages, mapper: mapper),
      options: DriverOptions(withheld: packed ? [] : .ringPacked, wait: machine.interrupts.bounded))
  }
}
