package import DMA
internal import HostIO
package import IOMMUInterface
internal import NVMe
internal import PCI
internal import Storage
internal import Virtio
internal import VirtioBlock
internal import VirtioEntropy
internal import VirtioMMIO
internal import VirtioPCI

/// A device that is plugged into a machine, and how its guest gets at it.
public final class PluggedDevice {
  enum Attachment {
    case pci(VirtioPCIFunction)
    case mmio(VirtioMMIODevice)
    case nvme(NVMeController)
  }
  public let description: DeviceDescription
  let attachment: Attachment
  private let endpoint: DMAEndpoint
  /// The contents of a disk that is memory.
  package let contents: HostMapping?
  unowned let machine: RunningMachine

  init(_ description: DeviceDescription, on machine: RunningMachine, number: UInt8) throws(MachineError) {
    self.description = description
    self.machine = machine
    let disk = try Disk(description)
    contents = disk.contents
    switch description.interface {
    case .nvme:
      guard let options = disk.options else { throw .missing("NVMe is a disk's interface") }
      var kept: DMAEndpoint?
      let controller: NVMeController = try rethrowing(
        machine.bus.add(at: PCISlot(number)) { (master) throws(NVMeError) in
          kept = master.endpoint
          return try NVMeController(NVMeOptions(options.disk), on: master)
        }, saying: MachineError.host)
      guard let kept else { throw .missing("the bus made no way to memory") }
      attachment = .nvme(controller)
      endpoint = kept
    case .mmio, .mmioLegacy:
      endpoint = machine.endpoint(number)
      var options = VirtioMMIOOptions()
      options.legacy = description.interface == .mmioLegacy
      options.iommuPlatform = description.host == .old ? .off : description.property
      options.isRestricted = machine.platform.isRestricted
      let interrupts = machine.interrupts
      let device = try Self.device(description, disk.options)
      attachment = .mmio(
        try rethrowing(
          VirtioMMIODevice(
            device, options, name: description.name, at: endpoint, line: { interrupts.setLine(asserted: $0) },
            log: machine.logger), as: MachineError.configuration))
    case .modern, .transitional, .legacy:
      var options = VirtioPCIOptions()
      options.iommuPlatform = description.host == .old ? .off : description.property
      options.disableLegacy = description.interface == .modern ? .auto : .off
      options.isRestricted = machine.platform.isRestricted
      options.isHardware = machine.platform.devicesAreHardware
      if description.interface == .modern, machine.platform.isBigEndian { options.disableLegacy = .on }
      let device = try Self.device(description, disk.options)
      var kept: DMAEndpoint?
      let function = try machine.add(number) { (master) throws(ConfigurationError) in
        kept = master.endpoint
        return try VirtioPCIFunction(device, options, name: description.name, on: master, log: machine.logger)
      }
      guard let kept else { throw .missing("the bus made no way to memory") }
      attachment = .pci(function)
      endpoint = kept
    }
  }

  /// The file behind a disk. It has to live until the device has opened its image.
  private struct Disk: ~Copyable {
    /// nil: the device is no disk.
    var options: BlockOptions?
    var contents: HostMapping?
    private let file: MemoryFile?

    init(_ description: DeviceDescription) throws(MachineError) {
      guard description.kind != .entropy else {
        file = nil
        return
      }
      if let image = description.image {
        options = BlockOptions(path: image)
        file = nil
        return
      }
      let memory = try rethrowing(
        MemoryFile(name: "disk", size: UInt64(description.byteCount)), saying: MachineError.host)
      let descriptor = memory.descriptor.rawValue
      contents = try rethrowing(
        HostMapping(descriptor: descriptor, offset: 0, byteCount: description.byteCount),
        as: { (error: MappingError) in MachineError.host("no memory for a disk (\(error.code))") })
      var options = BlockOptions(path: "/proc/self/fd/\(descriptor)")
      options.lock = .never
      options.sizePollInterval = nil
      self.options = options
      file = .some(consume memory)
    }
  }

  private static func device(
    _ description: DeviceDescription, _ disk: BlockOptions?
  ) throws(MachineError) -> any VirtioDevice {
    guard let disk else { return EntropyDevice() }
    return try rethrowing(BlockDevice(disk), saying: MachineError.host)
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
    case .pci(let function): function.choices.reasons
    case .mmio(let device): device.choices.reasons
    case .nvme: ["the device is not virtio: the platform's IOMMU alone governs it"]
    }
  }

  func reset() {
    switch attachment {
    case .pci(let function): function.reset()
    case .mmio(let device): device.reset()
    case .nvme(let controller): controller.reset()
    }
  }
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
