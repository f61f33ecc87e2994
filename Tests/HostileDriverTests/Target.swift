import DMA
import HostIO
import IOMMUInterface
import Logging
import MachineKit
import PCI
import Synchronization
import Virtio
import VirtioBlock
import VirtioDrivers
import VirtioEntropy
import VirtioIOMMU
import VirtioMMIO
import VirtioPCI
import VirtioServing
import VirtioTestKit

/// A device under attack, with its machine.
final class Target {
  enum Kind: Hashable, Sendable { case block, entropy, iommu, faulty(FaultyDevice.Flaw) }
  /// Memory begins above 0, so that what was never programmed leads nowhere.
  static let memoryStart: UInt64 = 0x1_0000
  static let memorySize = 1 << 20
  static let requester = RequesterID(bus: 0, device: 3)

  let transport: Transport
  let kind: Kind
  let memory: GuestMemory
  let shadow: GuestMemory
  let literal: LiteralMemory
  let interrupts: InterruptLog
  private let lines: LogLines
  let name: String
  let control: DeviceControl
  let driver: any DriverTransport
  let iommu: PageIOMMU?
  /// What is under attack, if it is a virtio-iommu: then it is the bus's IOMMU too, and its own function is not behind
  /// it (R036).
  let unit: IOMMUDevice?
  /// Endpoints behind ``unit``, by their numbers.
  let endpoints: [UInt32: EndpointSpace]
  /// Reads and writes the control registers raw: the common configuration, the legacy structure or the MMIO window,
  /// wherever a transport has its own.
  let peek: (_ at: UInt64, _ width: Int) -> UInt64
  let poke: (_ at: UInt64, _ width: Int, _ value: UInt64) -> Void
  let function: VirtioPCIFunction?
  private let bus: PCIBus?
  private let file: MemoryFile?
  /// Where the device may write.
  private(set) var allowed: [Range<UInt64>] = []
  private static let count = Mutex(0)
  /// What is in memory before the first write: no zeroes, so that one that is written shows.
  private static let noise: [UInt8] = {
    var random = SeededGenerator(7)
    return (0..<memorySize).map { _ in UInt8.random(in: 1...255, using: &random) }
  }()

  /// - Parameter platform: VIRTIO_F_ACCESS_PLATFORM is offered, and an IOMMU without mappings is in transport.
  init(
    _ transport: Transport, _ kind: Kind, platform: Bool = false, _ change: (inout VirtioPCIOptions) -> Void = { _ in }
  ) throws {
    self.transport = transport
    self.kind = kind
    memory = try GuestMemory(byteCount: Self.memorySize, at: GuestAddress(Self.memoryStart))
    shadow = try GuestMemory(byteCount: Self.memorySize, at: GuestAddress(Self.memoryStart))
    literal = LiteralMemory(memory, shadow: shadow)
    for one in [memory, shadow] { _ = one.copy(Self.noise.span, to: GuestAddress(Self.memoryStart)) }
    // One of the faulty devices never answers.
    let interrupts = try InterruptLog(
      patience: kind == .faulty(.mute) || kind == .faulty(.keeps) ? .seconds(2) : .seconds(30))
    let lines = LogLines(.warning) { _ in interrupts.signal() }
    (self.interrupts, self.lines) = (interrupts, lines)
    let number = Self.count.withLock { count in
      count += 1
      return count
    }
    name = "hd\(number)-"
    iommu = platform ? PageIOMMU() : nil

    let device: any VirtioDevice
    var unit: IOMMUDevice?
    switch kind {
    case .iommu:
      let one = try IOMMUDevice(memory, options: IOMMUSite.options)
      unit = one
      device = one
      file = nil
    case .entropy:
      device = EntropyDevice()
      file = nil
    case .faulty(let flaw):
      device = FaultyDevice(flaw, memory)
      file = nil
    case .block:
      let disk = try MemoryFile(name: "disk", size: 1 << 20)
      var options = BlockOptions(inMemory: disk)
      options.queueSize = 16
      device = try BlockDevice(options)
      file = consume disk
    }
    self.unit = unit
    endpoints = if let unit { IOMMUSite.plug(into: unit, memory) } else { [:] }
    if transport.isPCI {
      var options = VirtioPCIOptions()
      options.iommuPlatform = platform ? .on : .off
      options.disableLegacy = transport.isLegacy ? .off : .on
      change(&options)
      let bus = PCIBus(memory, messages: interrupts, lines: interrupts)
      if let inFront: any IOMMU = unit ?? iommu { bus.setIOMMU(inFront) }
      let (name, chosen) = (name, options)
      let function = try bus.add(at: PCISlot(3), bypassingIOMMU: unit != nil) { master throws(ConfigurationError) in
        try VirtioPCIFunction(device, chosen, name: name, on: master, log: lines.logger)
      }
      let bar = transport.isLegacy ? 0 : 4
      peek = { function.readBAR(bar, at: $0, width: $1) }
      poke = { function.writeBAR(bar, at: $0, width: $1, $2) }
      control = function.control
      driver = try PCIDriverTransport(FunctionAccess(bus, function, Self.requester), legacy: transport.isLegacy)
      self.function = function
      self.bus = bus
    } else {
      var options = VirtioMMIOOptions()
      options.iommuPlatform = platform ? .on : .off
      options.legacy = transport.isLegacy
      let endpoint = DMAEndpoint(memory, requester: Self.requester)
      if let iommu { endpoint.setIOMMU(iommu) }
      let mmio = try VirtioMMIODevice(
        device, options, name: name, at: endpoint, line: { interrupts.setLine($0) }, log: lines.logger)
      peek = { mmio.read(at: $0, width: $1) }
      poke = { mmio.write(at: $0, width: $1, $2) }
      control = mmio.control
      driver = try MMIODriverTransport(Registers(mmio))
      function = nil
      bus = nil
    }
  }

  private final class Registers: MMIORegisterAccess {
    let device: VirtioMMIODevice
    init(_ device: VirtioMMIODevice) { self.device = device }
    func read(at offset: UInt64, width: Int) -> UInt32 {
      UInt32(truncatingIfNeeded: device.read(at: offset, width: width))
    }
    func write(at offset: UInt64, width: Int, _ value: UInt32) { device.write(at: offset, width: width, UInt64(value)) }
  }

  private final class FunctionAccess: PCIFunctionAccess {
    let bus: PCIBus
    let function: VirtioPCIFunction
    let requester: RequesterID
    init(_ bus: PCIBus, _ function: VirtioPCIFunction, _ requester: RequesterID) {
      self.bus = bus
      self.function = function
      self.requester = requester
    }
    func readConfiguration(at offset: Int, width: Int) -> UInt32 {
      bus.readConfiguration(of: requester, at: offset, width: width)
    }
    func writeConfiguration(at offset: Int, width: Int, _ value: UInt32) {
      bus.writeConfiguration(of: requester, at: offset, width: width, value)
    }
    func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt32 {
      UInt32(truncatingIfNeeded: function.readBAR(index, at: offset, width: width))
    }
    func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt32) {
      function.writeBAR(index, at: offset, width: width, UInt64(value))
    }
  }

  /// The function's configuration space.
  func readConfigurationSpace(_ at: Int, _ width: Int) -> UInt32 {
    bus?.readConfiguration(of: Self.requester, at: at, width: width) ?? 0
  }
  func writeConfigurationSpace(_ at: Int, _ width: Int, _ value: UInt32) {
    bus?.writeConfiguration(of: Self.requester, at: at, width: width, value)
  }

  // MARK: What the device may touch

  func allow(_ address: DMAAddress, _ count: Int) {
    allowed.append(address.rawValue..<address.rawValue + UInt64(count))
  }

  private func bytes(_ memory: GuestMemory) -> [UInt8] {
    memory.bytes(Self.memorySize, at: GuestAddress(Self.memoryStart))
  }

  /// Queues that the device gave up.
  var stopped: Int {
    lines.all.count { $0.contains(" stopped until the driver resets") || $0.contains(" cannot start: ") }
  }

  /// The first byte that is not as the driver left it, and was not the device's to write.
  var touched: UInt64? {
    let now = bytes(memory)
    var expected = bytes(shadow)
    for range in allowed {
      let part = Int(range.lowerBound - Self.memoryStart)..<Int(range.upperBound - Self.memoryStart)
      expected.replaceSubrange(part, with: now[part])
    }
    if now == expected { return nil }
    return zip(now, expected).enumerated().first { $0.element.0 != $0.element.1 }.map {
      UInt64($0.offset) + Self.memoryStart
    }
  }

  /// From here on nothing is the device's.
  func forbidEverything() {
    _ = shadow.copy(bytes(memory).span, to: GuestAddress(Self.memoryStart))
    allowed = []
  }
}
