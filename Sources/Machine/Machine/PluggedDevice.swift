package import DMA
internal import DeviceCatalog
internal import HostIO
package import IOMMUInterface
internal import PCI
internal import Storage
internal import Virtio
internal import VirtioMMIO
internal import VirtioPCI

/// A device that is plugged into a machine, and how its guest gets at it.
public final class PluggedDevice {
  enum Attachment {
    case virtioPCI(VirtioPCIFunction)
    case virtioMMIO(VirtioMMIODevice)
    case function(any PCIFunction)
  }
  public let description: DeviceDescription
  let attachment: Attachment
  /// Its way to memory.
  private let endpoint: DMAEndpoint
  /// The contents of a disk that is memory.
  package let contents: HostMapping?
  unowned let machine: RunningMachine

  init(_ description: DeviceDescription, on machine: RunningMachine, number: UInt8) throws(MachineError) {
    self.description = description
    self.machine = machine
    switch description.kind.model {
    case nil: throw .missing("a machine cannot have a device of kind \(description.kind.rawValue)")
    case .optionless(let type, _):
      contents = nil
      (attachment, endpoint) = try machine.attach(type.init(), description, number)
    case .disk(_, let make, _):
      let backing = try DiskBacking(description)
      contents = backing.contents
      (attachment, endpoint) = try machine.attach(
        try rethrowing(make(backing.options), saying: MachineError.host), description, number)
    case .function(let type, _):
      let backing = try DiskBacking(description)
      contents = backing.contents
      (attachment, endpoint) = try machine.attach(type, backing.options, number)
    }
  }

  /// Look-ups and refusals in both of its spaces.
  public var counts: (platform: SpaceCounts, physical: SpaceCounts) {
    let counts = endpoint.counts
    return (SpaceCounts(counts.translated), SpaceCounts(counts.physical))
  }

  /// Its number in front of the IOMMU.
  package var requester: RequesterID { endpoint.requester }

  /// The choices that its options led to, a sentence each.
  public var reasons: [String] {
    switch attachment {
    case .virtioPCI(let function): function.choices.reasons
    case .virtioMMIO(let device): device.choices.reasons
    case .function: ["the device is not virtio: the platform's IOMMU alone governs it"]
    }
  }

  func reset() {
    switch attachment {
    case .virtioPCI(let function): function.reset()
    case .virtioMMIO(let device): device.reset()
    case .function(let function): function.reset()
    }
  }
}

extension RunningMachine {
  /// A virtio device behind the transport of its description.
  fileprivate func attach(
    _ device: any VirtioDevice, _ description: DeviceDescription, _ number: UInt8
  ) throws(MachineError) -> (PluggedDevice.Attachment, DMAEndpoint) {
    switch description.interface {
    case .nvme: throw .missing("NVMe is no interface of \(description.kind.rawValue)")
    case .mmio, .mmioLegacy:
      let endpoint = endpoint(number)
      return (.virtioMMIO(try mmioDevice(device, description, at: endpoint)), endpoint)
    case .modern, .transitional, .legacy:
      return try attach(number, as: PluggedDevice.Attachment.virtioPCI) { (master) throws(MachineError) in
        try rethrowing(
          VirtioPCIFunction(device, pciOptions(description), name: description.name, on: master, log: logger),
          as: MachineError.configuration)
      }
    }
  }

  /// A function that shows a disk and is not virtio.
  fileprivate func attach<F: DiskFunction>(
    _ type: F.Type, _ disk: DiskOptions, _ number: UInt8
  ) throws(MachineError) -> (PluggedDevice.Attachment, DMAEndpoint) {
    try attach(number, as: PluggedDevice.Attachment.function) { (master) throws(MachineError) in
      try rethrowing(F(disk, on: master), saying: MachineError.host)
    }
  }

  /// A function on the bus, with its way to memory.
  private func attach<F: PCIFunction>(
    _ number: UInt8, as attachment: (F) -> PluggedDevice.Attachment,
    _ make: (BusMaster) throws(MachineError) -> F
  ) throws(MachineError) -> (PluggedDevice.Attachment, DMAEndpoint) {
    var kept: DMAEndpoint?
    let function = try bus.add(at: PCISlot(number)) { (master) throws(MachineError) in
      kept = master.endpoint
      return try make(master)
    }
    guard let kept else { throw .missing("the bus made no way to memory") }
    return (attachment(function), kept)
  }

  private func pciOptions(_ description: DeviceDescription) -> VirtioPCIOptions {
    var options = VirtioPCIOptions()
    options.iommuPlatform = description.offeredProperty
    options.disableLegacy = description.interface == .modern ? .auto : .off
    options.isRestricted = platform.isRestricted
    options.isHardware = platform.devicesAreHardware
    if description.interface == .modern, platform.isBigEndian { options.disableLegacy = .on }
    return options
  }

  private func mmioDevice(
    _ device: any VirtioDevice, _ description: DeviceDescription, at endpoint: DMAEndpoint
  ) throws(MachineError) -> VirtioMMIODevice {
    var options = VirtioMMIOOptions()
    options.legacy = description.interface == .mmioLegacy
    options.iommuPlatform = description.offeredProperty
    options.isRestricted = platform.isRestricted
    let interrupts = interrupts
    return try rethrowing(
      VirtioMMIODevice(
        device, options, name: description.name, at: endpoint, line: { interrupts.setLine(asserted: $0) },
        log: logger), as: MachineError.configuration)
  }
}

extension DeviceDescription {
  /// `iommu_platform`, as a host of this age has it.
  fileprivate var offeredProperty: OnOffAuto { host == .old ? .off : property }
}

/// What a space has answered.
public struct SpaceCounts: Hashable, Sendable {
  /// Look-ups that queues answered themselves, and those that came to the space.
  public var hits: UInt64
  public var misses: UInt64
  /// Accesses refused.
  public var faults: UInt64

  init(_ counts: (hits: UInt64, misses: UInt64, faults: UInt64)) { (hits, misses, faults) = counts }
  /// Whether anything was asked of it.
  public var isUsed: Bool { hits + misses + faults > 0 }
}
