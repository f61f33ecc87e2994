import DMA
import DriverDMA
import HostIO
import IOMMUInterface
import MachineKit
import NVMe
import PCI
import Storage
import Synchronization
import Testing
import VirtioTestKit

/// A controller on a bus, with firmware done and a disk in memory.
final class Rig {
  let machine: TestMachine
  let file: MemoryFile
  let controller: NVMeController
  let access: PCIBusAccess
  private(set) var master: BusMaster!
  static let diskBytes: UInt64 = 8 << 20
  static let requester = RequesterID(bus: 0, device: 4)
  var memory: GuestMemory { machine.memory }
  var interrupts: InterruptLog { machine.interrupts }
  var bus: PCIBus { machine.bus }
  /// Memory for drivers, 4 MiB from 4 MiB on.
  let pages: GuestPages
  var requester: RequesterID { access.requester }

  /// - Parameter function 00:04.0.
  init(memory: GuestMemory? = nil, iommu: (any IOMMU)? = nil, _ change: (inout NVMeOptions) -> Void = { _ in }) throws {
    machine = try TestMachine(memory: memory, iommu: iommu)
    file = try MemoryFile(name: "nvme", size: Self.diskBytes)
    var disk = DiskOptions(inMemory: file)
    disk.serial = "S-1"
    // Memory has nothing to wait for; but what is in flight is what is to be tested.
    if (try? IOUring(entries: 8)) != nil { disk.engine = .uring }
    var options = NVMeOptions(disk)
    change(&options)
    var seen: BusMaster?
    controller = try machine.bus.add(at: PCISlot(4)) { master throws(NVMeError) in
      seen = master
      return try NVMeController(options, on: master)
    }
    master = seen
    machine.enumerate()
    access = try machine.access()
    pages = GuestPages(machine.memory, at: GuestAddress(0x40_0000), byteCount: 4 << 20)
  }

  func read32(_ offset: UInt64) -> UInt32 { access.readBAR(0, at: offset, width: 4) }
  func read64(_ offset: UInt64) -> UInt64 { bus.read(memory: access.base(0) + offset, width: 8) }
  func write32(_ offset: UInt64, _ value: UInt32) { access.writeBAR(0, at: offset, width: 4, value) }
  func write64(_ offset: UInt64, _ value: UInt64) { bus.write(memory: access.base(0) + offset, width: 8, value) }
  func setCommand(_ command: PCICommand) {
    access.writeConfiguration(at: PCIRegister.command, width: 2, UInt32(command.rawValue))
  }

  func store(_ bytes: [UInt8], at address: UInt64) { memory.write(bytes, at: GuestAddress(address)) }
  func load(_ count: Int, at address: UInt64) -> [UInt8] { memory.bytes(count, at: GuestAddress(address)) }
  func store64(_ values: UInt64..., at address: UInt64) {
    store(values.flatMap { value in (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * UInt64($0))) } }, at: address)
  }
  func load32(_ address: UInt64) -> UInt32 {
    load(4, at: address).enumerated().reduce(0) { $0 | UInt32($1.element) << UInt32(8 * $1.offset) }
  }
}
