import DriverDMA
import HostIO
import IOMMUInterface
import Logging
import PCI
import Storage
import Synchronization
import Testing
import Virtio
import VirtioBlock
import VirtioDrivers
import VirtioPCI
import VirtioServing

/// Messages as they arrive; each can be waited for.
final class Arrivals: MessageInterrupts, Sendable {
  private let arrived: EventFD
  init() throws { arrived = try EventFD() }
  func deliver(_ message: InterruptMessage, from requester: RequesterID) { arrived.signal() }
  /// Looks again when something arrives, 20 seconds at most.
  var wait: BoundedWait {
    BoundedWait(attempts: 20000) { [arrived] in
      if (try? arrived.wait(timeout: .milliseconds(1))) == true { _ = try? arrived.drain() }
    }
  }
}

/// A disk in memory as a PCI function behind a unit, and everything its driver needs.
final class PCIRig {
  let rig: UnitRig
  let arrivals: Arrivals
  let bus: PCIBus
  let transport: PCIDriverTransport
  private let file: MemoryFile
  private let function: VirtioPCIFunction

  init(_ kind: UnitKind, iommuPlatform: Bool = true, isUnitLate: Bool = false) throws {
    rig = try UnitRig(kind, endpoint: false)
    arrivals = try Arrivals()
    bus = PCIBus(rig.memory, messages: arrivals)
    if !isUnitLate { bus.setIOMMU(rig.unit) }
    file = try MemoryFile(name: "disk", size: 4 << 20)
    var disk = BlockOptions(path: "/proc/self/fd/\(file.descriptor.rawValue)")
    disk.lock = .never
    disk.sizePollInterval = nil
    let device = try BlockDevice(disk)
    var options = VirtioPCIOptions()
    options.iommuPlatform = iommuPlatform ? .on : .off
    function = try bus.add(at: PCISlot(UnitRig.requester.device)) { [options] master throws(ConfigurationError) in
      try VirtioPCIFunction(
        device, options, name: "disk", on: master, log: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
    }
    if isUnitLate { bus.setIOMMU(rig.unit) }
    var firmware = PCIEnumerator(
      bus, memory: 0xe000_0000..<0xf000_0000, highMemory: 0x40_0000_0000..<0x50_0000_0000, io: 0x1000..<0x1_0000)
    let found = try #require(firmware.enumerate().first)
    try #require(found.requester == UnitRig.requester)
    transport = try PCIDriverTransport(PCIBusAccess(bus, found))
    let messages = (0...function.control.queueCount).map { InterruptMessage(address: 0xfee0_0000, data: UInt32($0)) }
    #expect(transport.enableMSIX(messages) && transport.setConfigurationVector(0) && transport.setVector(1, ofQueue: 0))
  }

  func driver(_ mapper: any DMAMapper, packed: Bool = false) throws(DriverError) -> BlockDriver {
    try BlockDriver(
      transport, on: DriverPlatform(pages: rig.pages, mapper: mapper),
      options: DriverOptions(withheld: packed ? [] : .ringPacked, wait: arrivals.wait))
  }
}
