import DMA
import DriverDMA
import IOMMUInterface
import Logging
import PCI
import Testing
import Virtio
import VirtioDrivers
import VirtioEntropy
import VirtioIOMMU
import VirtioPCI
import VirtioServing
import VirtioTestKit

/// A machine with a virtio-iommu, 00:01.0, and a virtio-rng behind it, 00:03.0, that offers VIRTIO_F_ACCESS_PLATFORM;
/// and the drivers of both.
final class IOMMURig {
  let memory: GuestMemory
  let platform: Platform
  let bus: PCIBus
  let iommu: IOMMUDevice
  let iommuFunction: VirtioPCIFunction
  let endpoint = RequesterID(bus: 0, device: 3)
  /// What drivers' memory is taken from.
  let pages: GuestPages
  private(set) var entropy: VirtioPCIFunction
  private var found: [PCIEnumerator.Found] = []

  init(bypass: IOMMUOptions.Bypass, _ change: (inout IOMMUOptions) -> Void = { _ in }) throws {
    memory = try GuestMemory(byteCount: 16 << 20)
    platform = try Platform()
    bus = PCIBus(memory, messages: platform, lines: platform)
    var options = IOMMUOptions()
    options.bypass = bypass
    change(&options)
    let iommu = try IOMMUDevice(memory, options: options)
    self.iommu = iommu
    iommuFunction = try bus.add(at: PCISlot(1), bypassingIOMMU: true) { master throws(ConfigurationError) in
      try VirtioPCIFunction(iommu, .platform, name: "iommu", on: master, log: Self.log)
    }
    bus.setIOMMU(iommu)
    entropy = try Self.addEntropy(bus, PCISlot(3))
    pages = GuestPages(memory, at: GuestAddress(1 << 20), byteCount: 8 << 20)
    found = Self.runFirmware(bus)
  }

  private static var log: Logger { Logger(label: "test") { _ in SwiftLogNoOpLogHandler() } }

  private static func addEntropy(_ bus: PCIBus, _ slot: PCISlot) throws -> VirtioPCIFunction {
    try bus.add(at: slot) { master throws(ConfigurationError) in
      try VirtioPCIFunction(EntropyDevice(), .platform, name: "rng", on: master, log: log)
    }
  }

  /// Takes the virtio-rng out, and puts another one in its place or elsewhere, which firmware finds.
  func replug(_ slot: PCISlot) throws {
    bus.remove(entropy)
    entropy = try Self.addEntropy(bus, slot)
    found = Self.runFirmware(bus)
  }

  /// The first function, which is the virtio-iommu, gets the same addresses every time.
  private static func runFirmware(_ bus: PCIBus) -> [PCIEnumerator.Found] {
    var firmware = PCIEnumerator(
      bus, memory: 0xe000_0000..<0xf000_0000, highMemory: 0x40_0000_0000..<0x50_0000_0000, io: 0x1000..<0x1_0000)
    return firmware.enumerate()
  }

  /// A function as its driver reaches it.
  func transport(_ requester: RequesterID) throws -> PCIDriverTransport {
    let access = BusAccess(bus, try #require(found.first { $0.requester == requester }))
    let transport = try PCIDriverTransport(access)
    let messages = (0..<2).map {
      InterruptMessage(address: FunctionRig.messageAddress, data: UInt32(requester.rawValue) << 8 | UInt32($0))
    }
    _ = transport.enableMSIX(messages)
    return transport
  }

  /// So many looks, a moment apart.
  var options: DriverOptions {
    let platform = platform
    return DriverOptions(wait: BoundedWait(attempts: 20_000) { platform.pause() })
  }

  /// The driver of the virtio-iommu, whose memory is physical.
  func driver(withholding withheld: Features = []) throws -> VirtioIOMMUDriver {
    var options = options
    options.withheld = withheld
    return try VirtioIOMMUDriver(
      transport(RequesterID(bus: 0, device: 1)), on: DriverPlatform(pages: pages), options: options)
  }

  /// The driver of the virtio-rng; its addresses are a mapper's, or physical.
  func entropyDriver(
    _ mapper: (any DMAMapper)? = nil, at requester: RequesterID? = nil
  ) throws(DriverError) -> EntropyDriver {
    guard let transport = try? transport(requester ?? endpoint) else { throw .request }
    return try EntropyDriver(transport, on: DriverPlatform(pages: pages, mapper: mapper), options: options)
  }

  /// Faults that arrive, once there are as many.
  func faults(_ driver: VirtioIOMMUDriver, _ count: Int) throws -> [IOMMUFault] {
    var faults: [IOMMUFault] = []
    for _ in 0..<20_000 {
      faults += try driver.receiveFaults()
      if faults.count >= count { break }
      platform.pause()
    }
    return faults
  }

  /// Asks for 64 random bytes, and looks whether they came.
  func works(_ driver: EntropyDriver) throws -> Bool {
    let page = try pages.allocate(4096)
    defer { pages.free(page, byteCount: 4096) }
    let segments = [GuestSegment(page, count: 64)]
    guard try driver.fill(segments.span) > 0 else { return false }
    return bytes(page, 64).contains { $0 != 0 }
  }

  /// Whether a driver that uses physical addresses gets nowhere: its device cannot reach the ring, and says so.
  func isRefused(at requester: RequesterID? = nil) -> Bool {
    do throws(DriverError) {
      return try isRefused(entropyDriver(at: requester))
    } catch {
      return error == .needsReset
    }
  }

  /// As above, for a driver that has worked so far.
  func isRefused(_ driver: EntropyDriver) throws(DriverError) -> Bool {
    guard let page = try? pages.allocate(4096) else { return false }
    defer { pages.free(page, byteCount: 4096) }
    let segments = [GuestSegment(page, count: 64)]
    _ = try driver.submit(segments.span)
    driver.publish()
    let control = entropy.control
    guard platform.poll({ control.status.contains(.needsReset) }) else { return false }
    return try driver.reap() == nil && bytes(page, 64).allSatisfy { $0 == 0 }
  }

  func bytes(_ address: GuestAddress, _ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    return memory.copy(from: address, into: &span) == count ? bytes : []
  }

  /// The field `bypass`, as every driver reads it.
  var bypassField: UInt8 {
    var bytes: [UInt8] = [0xff]
    var span = bytes.mutableSpan
    iommu.readConfiguration(at: 36, into: &span)
    return bytes[0]
  }
}

/// A domain that writes down what was mapped in it last.
final class WitnessedDomain: IOMMUDomain {
  let domain: VirtioIOMMUDomain
  private(set) var last: (address: DMAAddress, count: UInt64)?
  init(_ domain: VirtioIOMMUDomain) { self.domain = domain }
  func map(_ address: DMAAddress, to guest: GuestAddress, count: UInt64, permissions: DMAPermissions) throws(DMAError) {
    last = (address, count)
    try domain.map(address, to: guest, count: count, permissions: permissions)
  }
  func unmap(_ address: DMAAddress, count: UInt64) throws(DMAError) { try domain.unmap(address, count: count) }
}
