import DMA
import DriverDMA
import HostIO
import IOMMUInterface
import NVMe
import PCI
import Storage
import Synchronization
import Testing
import VirtioDrivers
import VirtioTestKit

/// Messages and pins as the platform sees them; each arrival can be waited for.
final class Platform: MessageInterrupts, LineInterrupts {
  private let state = Mutex<(data: [UInt32], pins: Set<UInt8>)>(([], []))
  private let arrived: EventFD

  init() throws { arrived = try EventFD() }

  /// Data of messages, in order.
  var messages: [UInt32] { state.withLock { $0.data } }
  func isAsserted(_ device: UInt8) -> Bool { state.withLock { $0.pins.contains(device) } }

  func deliver(_ message: InterruptMessage, from requester: RequesterID) {
    state.withLock { $0.data.append(message.data) }
    arrived.signal()
  }
  func set(_ pin: PCIInterruptPin, ofDevice device: UInt8, asserted: Bool) {
    state.withLock { if asserted { $0.pins.insert(device) } else { $0.pins.remove(device) } }
    arrived.signal()
  }

  /// Lets a millisecond pass, or less if an interrupt arrives.
  func pause() {
    _ = try? arrived.wait(timeout: .milliseconds(1))
    _ = try? arrived.drain()
  }

  /// Waits until `condition` holds.
  func wait(_ condition: () -> Bool) -> Bool {
    let end = ContinuousClock.now + .seconds(20)
    while !condition() {
      guard ContinuousClock.now < end else { return false }
      pause()
    }
    return true
  }
}

extension PCIBusAccess {
  /// Where a BAR is.
  func base(_ index: Int) -> UInt64 { windows.first { $0.index == index }?.base ?? 0 }
}

/// A controller on a bus, with firmware done and a disk in memory.
final class Rig {
  let memory: GuestMemory
  let platform: Platform
  let bus: PCIBus
  let file: MemoryFile
  let controller: NVMeController
  let access: PCIBusAccess
  private(set) var master: BusMaster!
  static let diskBytes: UInt64 = 8 << 20
  var requester: RequesterID { access.requester }

  /// - Parameter function 00:04.0.
  init(memory: GuestMemory? = nil, iommu: (any IOMMU)? = nil, _ change: (inout NVMeOptions) -> Void = { _ in }) throws {
    self.memory = try memory ?? GuestMemory(byteCount: 16 << 20)
    platform = try Platform()
    file = try MemoryFile(name: "nvme", size: Self.diskBytes)
    bus = PCIBus(self.memory, messages: platform, lines: platform)
    if let iommu { bus.setIOMMU(iommu) }
    var disk = DiskOptions(path: "/proc/self/fd/\(file.descriptor.rawValue)")
    disk.lock = .never
    disk.serial = "S-1"
    var options = NVMeOptions(disk)
    change(&options)
    var seen: BusMaster?
    controller = try bus.add(at: PCISlot(4)) { master throws(NVMeError) in
      seen = master
      return try NVMeController(options, on: master)
    }
    master = seen
    var firmware = PCIEnumerator(
      bus, memory: 0xe000_0000..<0xf000_0000, highMemory: 0x40_0000_0000..<0x50_0000_0000, io: 0x1000..<0x1_0000)
    access = PCIBusAccess(bus, try #require(firmware.enumerate().first))
  }

  func read32(_ offset: UInt64) -> UInt32 { access.readBAR(0, at: offset, width: 4) }
  func read64(_ offset: UInt64) -> UInt64 { bus.read(memory: access.base(0) + offset, width: 8) }
  func write32(_ offset: UInt64, _ value: UInt32) { access.writeBAR(0, at: offset, width: 4, value) }
  func write64(_ offset: UInt64, _ value: UInt64) { bus.write(memory: access.base(0) + offset, width: 8, value) }
  func setCommand(_ command: PCICommand) {
    access.writeConfiguration(at: PCIRegister.command, width: 2, UInt32(command.rawValue))
  }

  func store(_ bytes: [UInt8], at address: UInt64) {
    #expect(memory.copy(bytes.span, to: GuestAddress(address)) == bytes.count)
  }
  func load(_ count: Int, at address: UInt64) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    #expect(memory.copy(from: GuestAddress(address), into: &span) == count)
    return bytes
  }
  func store64(_ values: UInt64..., at address: UInt64) {
    store(values.flatMap { value in (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * UInt64($0))) } }, at: address)
  }
  func load32(_ address: UInt64) -> UInt32 {
    load(4, at: address).enumerated().reduce(0) { $0 | UInt32($1.element) << UInt32(8 * $1.offset) }
  }
}

/// Bytes that tell places apart.
func pattern(_ count: Int, _ seed: Int = 1) -> [UInt8] {
  (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 / 256 &+ seed) }
}
