public import DMA
public import HostIO
public import IOMMUInterface
public import Logging
public import PCI
public import Storage
public import Virtio
public import VirtioBlock
public import VirtioPCI
public import VirtioTestKit

/// Memory, a PCI bus, and where its interrupts go. Firmware runs when it is told to.
public final class TestMachine {
  public let memory: GuestMemory
  public let interrupts: InterruptLog
  public let bus: PCIBus
  /// What ``add(_:_:at:behind:bypassingIOMMU:name:log:)`` gave functions, in order.
  public private(set) var masters: [BusMaster] = []
  /// What firmware found last.
  public private(set) var found: [PCIEnumerator.Found] = []

  /// - Parameter iommu: is there before any function.
  public init(
    memory: GuestMemory? = nil, iommu: (any IOMMU)? = nil, patience: Duration = .seconds(20)
  ) throws {
    self.memory = try memory ?? GuestMemory(byteCount: 16 << 20)
    interrupts = try InterruptLog(patience: patience)
    bus = PCIBus(self.memory, messages: interrupts, lines: interrupts)
    if let iommu { bus.setIOMMU(iommu) }
  }

  /// Adds a virtio function.
  public func add(
    _ device: any VirtioDevice, _ options: VirtioPCIOptions = VirtioPCIOptions(), at slot: PCISlot = PCISlot(3),
    behind bridge: PCIBridge? = nil, bypassingIOMMU: Bool = false, name: String = "test", log: Logger = .silent
  ) throws -> VirtioPCIFunction {
    try bus.add(at: slot, behind: bridge, bypassingIOMMU: bypassingIOMMU) { master throws(ConfigurationError) in
      masters.append(master)
      return try VirtioPCIFunction(device, options, name: name, on: master, log: log)
    }
  }

  /// Firmware: gives each function its addresses, the first found the same ones every time.
  @discardableResult public func enumerate() -> [PCIEnumerator.Found] {
    var firmware = PCIEnumerator(
      bus, memory: 0xe000_0000..<0xf000_0000, highMemory: 0x40_0000_0000..<0x50_0000_0000, io: 0x1000..<0x1_0000)
    found = firmware.enumerate()
    return found
  }

  /// A function that firmware found, as its driver reaches it; nil: the first.
  public func access(_ requester: RequesterID? = nil) throws -> PCIBusAccess {
    guard let one = found.first(where: { requester == nil || $0.requester == requester }) else {
      throw NotFound(requester: requester)
    }
    return PCIBusAccess(bus, one)
  }

  public struct NotFound: Error { public var requester: RequesterID? }

  // MARK: Registers

  public func read(_ requester: RequesterID, _ at: Int, _ width: Int = 4) -> UInt32 {
    bus.readConfiguration(of: requester, at: at, width: width)
  }
  public func write(_ requester: RequesterID, _ at: Int, _ width: Int, _ value: UInt32) {
    bus.writeConfiguration(of: requester, at: at, width: width, value)
  }
  public func command(_ requester: RequesterID, _ command: PCICommand) {
    write(requester, PCIRegister.command, 2, UInt32(command.rawValue))
  }
}

extension PCIBusAccess {
  /// Where a BAR is.
  public func base(_ index: Int) -> UInt64 { windows.first { $0.index == index }?.base ?? 0 }
}

extension Features {
  /// What most tests accept.
  public static var plain: Features { [.version1] }
  public static var platform: Features { [.version1, .accessPlatform] }
}

extension VirtioPCIOptions {
  /// A modern device with the bit offered.
  public static var platform: VirtioPCIOptions { .with { $0.iommuPlatform = .on } }
  public static func with(_ change: (inout VirtioPCIOptions) -> Void) -> VirtioPCIOptions {
    var options = VirtioPCIOptions()
    change(&options)
    return options
  }
}

extension DiskOptions {
  /// A disk in memory.
  public init(inMemory file: borrowing MemoryFile) {
    self.init(path: "/proc/self/fd/\(file.descriptor.rawValue)")
    lock = .never
    sizePollInterval = nil
  }
}

extension BlockOptions {
  /// A device for a disk in memory.
  public init(inMemory file: borrowing MemoryFile) {
    self.init(path: "")
    disk = DiskOptions(inMemory: file)
  }
}
