import DMA
import DeviceCatalog
import DriverDMA
import Virtio
import VirtioDrivers

/// The driver of a device, and the mapper that it was given.
struct GuestDriver {
  let driver: any DataDriver
  /// What was negotiated; nil for what is not virtio.
  var features: Features?
  /// The mapper that its requests go through.
  var mapper: ShapedMapper
  /// The domain behind that mapper, if there is one.
  var domain: UnitDomain?

  /// Bytes from the device into memory. Returns how many.
  func receive(from place: UInt64, into data: [GuestSegment]) throws(MachineError) -> Int {
    try rethrowing(driver.receive(from: place, into: data.span), as: MachineError.init(thrown:))
  }

  /// Bytes of memory to the device.
  func send(to place: UInt64, from data: [GuestSegment]) throws(MachineError) {
    try rethrowing(driver.send(to: place, from: data.span), as: MachineError.init(thrown:))
  }

  /// Resets the device, and takes its memory back.
  func stop() throws(MachineError) { try rethrowing(driver.stop(), as: MachineError.init(thrown:)) }
}

extension PluggedDevice {
  /// How the guest reaches the device's registers, and a wait for its interrupts.
  func connect() throws(MachineError) -> (transport: any DriverTransport, wait: BoundedWait) {
    switch attachment {
    case .virtioPCI:
      let transport = try machine.pciTransport(requester, legacy: description.interface == .legacy)
      return (transport, machine.wait { _ = transport.takeISR() })
    case .virtioMMIO(let device):
      let transport = try rethrowing(MMIODriverTransport(MMIOAccess(device)), saying: MachineError.missing)
      return (transport, machine.wait { _ = transport.takeInterrupts() })
    case .function: throw .missing("a function that is not virtio has no virtio transport")
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
    let usesTables = description.descriptors == .indirect
    switch description.kind.model {
    case nil: throw .missing("there is no driver of \(description.kind.rawValue)")
    case .function(_, let type):
      let options = FunctionDriverOptions(usesLists: usesTables, wait: machine.wait {})
      let access = try machine.functionAccess(requester)
      let driver = try rethrowing(
        type.init(access, mapper: byPlatform, options: options) as any DataDriver, as: MachineError.init(thrown:))
      return GuestDriver(driver: driver, features: nil, mapper: byPlatform, domain: domain)
    case .optionless(_, let type), .disk(_, _, let type):
      let (transport, wait) = try connect()
      var options = DriverOptions(queue: QueueOptions(size: 32, segments: 8, indirect: usesTables), wait: wait)
      if description.ring == .split { options.withheld.insert(.ringPacked) }
      switch description.acknowledgement {
      case .notPlatform: options.withheld.insert(.accessPlatform)
      case .neither: options.withheld.formUnion([.version1, .accessPlatform])
      case .all, .legacy: break
      }
      let driver = try rethrowing(
        type.init(transport, on: platform, options: options) as any VirtioDriver, as: MachineError.driver)
      let isDirect = platform.mapper(negotiated: driver.features) === direct
      return GuestDriver(
        driver: driver, features: driver.features, mapper: isDirect ? direct : byPlatform,
        domain: isDirect ? nil : domain)
    }
  }
}
