import DMA
import DriverDMA
import IOMMUInterface
import NVMe
import PCI
import Virtio
import VirtioDrivers

/// A disk as the guest uses it, with any driver.
protocol GuestDisk: AnyObject {
  /// Sectors of 512 bytes from `sector` on, into memory.
  func read(_ sector: UInt64, into data: [GuestSegment]) throws(MachineError)
  /// Memory to sectors from `sector` on.
  func write(_ sector: UInt64, from data: [GuestSegment]) throws(MachineError)
  /// Makes what was written durable.
  func flush() throws(MachineError)
  /// Sectors.
  var capacity: UInt64 { get }
  /// Resets the device, and takes its memory back.
  func stop() throws(MachineError)
}

/// A disk behind the virtio-blk driver.
final class VirtioDisk: GuestDisk {
  let driver: BlockDriver
  init(_ driver: BlockDriver) { self.driver = driver }
  var capacity: UInt64 { driver.capacity }

  func read(_ sector: UInt64, into data: [GuestSegment]) throws(MachineError) {
    try rethrowing(driver.read(sector, into: data.span), as: MachineError.driver)
  }
  func write(_ sector: UInt64, from data: [GuestSegment]) throws(MachineError) {
    try rethrowing(driver.write(sector, from: data.span), as: MachineError.driver)
  }
  func flush() throws(MachineError) {
    try rethrowing(driver.flush(), as: MachineError.driver)
  }
  func stop() throws(MachineError) {
    try rethrowing(driver.stop(), as: MachineError.driver)
  }
}

/// A disk behind the NVMe driver.
final class NVMeDisk: GuestDisk {
  private let driver: NVMeDriver

  init(
    _ access: any PCIFunctionAccess, _ mapper: any DMAMapper, _ description: DeviceDescription, _ wait: BoundedWait
  ) throws(MachineError) {
    let format: NVMeDataFormat = description.descriptors == .indirect ? .sgl : .prp
    let messages = (0..<2).map { InterruptMessage(address: 0xFEE0_0000, data: 0x40 + UInt32($0)) }
    driver = try rethrowing(
      NVMeDriver(
        access, mapper: mapper,
        options: NVMeDriverOptions(queueSize: 32, format: format, messages: messages, wait: wait)),
      as: MachineError.nvme)
  }

  var capacity: UInt64 { driver.blockCount }
  func read(_ sector: UInt64, into data: [GuestSegment]) throws(MachineError) {
    try rethrowing(driver.read(sector, into: data.span), as: MachineError.nvme)
  }
  func write(_ sector: UInt64, from data: [GuestSegment]) throws(MachineError) {
    try rethrowing(driver.write(sector, from: data.span), as: MachineError.nvme)
  }
  func flush() throws(MachineError) {
    try rethrowing(driver.flush(), as: MachineError.nvme)
  }
  func stop() throws(MachineError) {
    try rethrowing(driver.stop(), as: MachineError.nvme)
  }
}

/// The driver of a device, and the mappers that it was given.
struct GuestDriver {
  enum Driver {
    case disk(any GuestDisk)
    case entropy(EntropyDriver)
  }
  var driver: Driver
  /// What was negotiated; nil for what is not virtio.
  var features: Features?
  /// The mapper that its requests go through.
  var mapper: ShapedMapper
  /// The domain behind that mapper, if there is one.
  var domain: UnitDomain?

  func stop() throws(MachineError) {
    switch driver {
    case .disk(let disk): try disk.stop()
    case .entropy(let driver): try rethrowing(driver.stop(), as: MachineError.driver)
    }
  }
}

extension PluggedDevice {
  /// How the guest reaches the device's registers, and a wait for its interrupts.
  func connect() throws(MachineError) -> (transport: any DriverTransport, wait: BoundedWait) {
    switch attachment {
    case .pci:
      let transport = try machine.pciTransport(requester, legacy: description.interface == .legacy)
      return (transport, machine.wait { _ = transport.takeISR() })
    case .mmio(let device):
      let transport = try rethrowing(MMIODriverTransport(MMIOAccess(device)), saying: MachineError.missing)
      return (transport, machine.wait { _ = transport.takeInterrupts() })
    case .nvme: throw .missing("an NVMe controller has no virtio transport")
    }
  }

  /// Starts the guest's driver, after the machine was booted.
  func startDriver() throws(MachineError) -> GuestDriver {
    let domain = try machine.setState(description.state, of: requester)
    let flush = description.flushBatch > 1 ? IOMMUMapper.Flush.deferred(batch: description.flushBatch) : .strict
    let made: (any DMAMapper)? = try rethrowing(machine.guest.mapper(domain, flush: flush), as: MachineError.dma)
    var platform = machine.guest.driverPlatform(made)
    let byPlatform = ShapedMapper(over: platform.mapper, domain: domain, window: domain?.window ?? 0)
    let direct = ShapedMapper(over: platform.direct, domain: nil, window: 0)
    platform.mapper = byPlatform
    platform.direct = direct
    if case .nvme = attachment {
      let disk = try NVMeDisk(try machine.functionAccess(requester), byPlatform, description, machine.wait {})
      return GuestDriver(driver: .disk(disk), features: nil, mapper: byPlatform, domain: domain)
    }
    let (transport, wait) = try connect()
    var options = DriverOptions(
      queue: QueueOptions(size: 32, segments: 8, indirect: description.descriptors == .indirect), wait: wait)
    if description.ring == .split { options.withheld.insert(.ringPacked) }
    if description.acknowledgement == .notPlatform { options.withheld.insert(.accessPlatform) }
    do throws(DriverError) {
      let driver: GuestDriver.Driver
      let features: Features
      if description.kind == .entropy {
        let entropy = try EntropyDriver(transport, on: platform, options: options)
        (driver, features) = (.entropy(entropy), entropy.features)
      } else {
        let block = try BlockDriver(transport, on: platform, options: options)
        (driver, features) = (.disk(VirtioDisk(block)), block.features)
      }
      let isDirect = platform.mapper(negotiated: features) === direct
      return GuestDriver(
        driver: driver, features: features, mapper: isDirect ? direct : byPlatform, domain: isDirect ? nil : domain)
    } catch {
      throw .driver(error)
    }
  }
}
