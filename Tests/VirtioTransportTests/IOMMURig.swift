import DMA
import DriverDMA
import IOMMUInterface
import MachineKit
import PCI
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
  private let machine: TestMachine
  let iommu: IOMMUDevice
  let iommuFunction: VirtioPCIFunction
  let endpoint = RequesterID(bus: 0, device: 3)
  /// What drivers' memory is taken from.
  let pages: GuestPages
  private(set) var entropy: VirtioPCIFunction
  var memory: GuestMemory { machine.memory }
  var interrupts: InterruptLog { machine.interrupts }
  var bus: PCIBus { machine.bus }

  init(bypass: IOMMUOptions.Bypass, _ change: (inout IOMMUOptions) -> Void = { _ in }) throws {
    machine = try TestMachine()
    var options = IOMMUOptions()
    options.bypass = bypass
    change(&options)
    let iommu = try IOMMUDevice(machine.memory, options: options)
    self.iommu = iommu
    iommuFunction = try machine.add(iommu, .platform, at: PCISlot(1), bypassingIOMMU: true)
    machine.bus.setIOMMU(iommu)
    entropy = try machine.add(EntropyDevice(), .platform)
    pages = GuestPages(machine.memory, at: GuestAddress(1 << 20), byteCount: 8 << 20)
    machine.enumerate()
  }

  /// Takes the virtio-rng out, and puts another one in its place or elsewhere, which firmware finds.
  func replug(_ slot: PCISlot) throws {
    bus.remove(entropy)
    entropy = try machine.add(EntropyDevice(), .platform, at: slot)
    machine.enumerate()
  }

  /// A function as its driver reaches it.
  func transport(_ requester: RequesterID) throws -> PCIDriverTransport {
    let transport = try PCIDriverTransport(machine.access(requester))
    let messages = (0..<2).map {
      InterruptMessage(address: FunctionRig.messageAddress, data: UInt32(requester.rawValue) << 8 | UInt32($0))
    }
    _ = transport.enableMSIX(messages)
    return transport
  }

  /// So many looks, a moment apart.
  var options: DriverOptions { DriverOptions(wait: interrupts.bounded) }

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
    _ = try interrupts.poll {
      faults += try driver.receiveFaults()
      return faults.count >= count
    }
    return faults
  }

  /// Asks for 64 random bytes, and looks whether they came.
  func works(_ driver: EntropyDriver) throws -> Bool {
    let page = try pages.allocate(4096)
    defer { pages.free(page, byteCount: 4096) }
    let segments = [GuestSegment(page, count: 64)]
    guard try driver.fill(segments.span) > 0 else { return false }
    return memory.bytes(64, at: page).contains { $0 != 0 }
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
    guard interrupts.poll({ control.status.contains(.needsReset) }) else { return false }
    return try driver.reap() == nil && memory.bytes(64, at: page).allSatisfy { $0 == 0 }
  }

  /// The field `bypass`, as every driver reads it.
  var bypassField: UInt8 { iommu.configuration(1, at: 36)[0] }
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
