internal import DMA
package import DriverDMA
package import IOMMUInterface
internal import IOMMUs
public import Logging
internal import PCI
internal import Virtio
package import VirtioDrivers
internal import VirtioIOMMU
internal import VirtioPCI

/// A machine in this process: memory, buses, the platform's IOMMU, devices, and the guest that drives them.
///
/// One thread makes it and runs the guest on it; devices have threads of their own.
public final class RunningMachine {
  public let platform: Platform
  /// What the guest sees of its memory.
  package let guest: GuestOS
  let bus: PCIBus
  let interrupts: InterruptController
  private let deviceMemory: GuestMemory
  private let unit: (any UnitWithDriver)?
  private let frontUnit: (any IOMMU)?
  private var devices: [PluggedDevice] = []
  private var access: [RequesterID: PCIBusAccess] = [:]
  private var unitFunction: VirtioPCIFunction?
  private let log: Logger
  /// How often a driver looks for an answer, a millisecond apart without interrupts.
  var patience = 5000

  /// A machine with nothing plugged in.
  public init(_ platform: Platform, log: Logger? = nil) throws(MachineError) {
    self.platform = platform
    self.log = log ?? Logger(label: "machine") { _ in SwiftLogNoOpLogHandler() }
    let mapping = try rethrowing(
      HostMapping(anonymous: MemoryPlan.byteCount),
      as: { (error: MappingError) in MachineError.host("no memory (\(error.code))") })
    let memory = try MemoryPlan.guestView(mapping)
    deviceMemory = platform.reach == .everything ? memory : try MemoryPlan.deviceView(mapping, platform.reach)
    interrupts = try rethrowing(InterruptController(), saying: MachineError.host)
    bus = PCIBus(deviceMemory, messages: interrupts, lines: interrupts)
    let grants = platform.unit == .grants ? XenGrantTable() : nil
    guest = GuestOS(platform, memory, grants: grants)
    switch platform.unit {
    case .none, .grants: unit = nil
    case .vtd: unit = RequesterUnit.vtd(deviceMemory, guest.pages, interrupts)
    case .amdvi: unit = RequesterUnit.amdvi(deviceMemory, guest.pages, interrupts)
    case .tce: unit = TCEWithDriver()
    case .sun4u: unit = Sun4uWithDriver(deviceMemory, guest.pages)
    case .virtioIOMMU: unit = try VirtioIOMMUWithDriver(deviceMemory)
    }
    frontUnit = unit?.unit ?? grants
    if let frontUnit { bus.setIOMMU(frontUnit) }
    if let unit = unit as? VirtioIOMMUWithDriver { unitFunction = try plugUnit(unit.device) }
  }

  /// The IOMMU is a function itself, in front of nothing (R036).
  private func plugUnit(_ device: IOMMUDevice) throws(MachineError) -> VirtioPCIFunction {
    return try rethrowing(
      bus.add(at: PCISlot(1), bypassingIOMMU: true) { (master) throws(ConfigurationError) in
        try VirtioPCIFunction(device, VirtioPCIOptions(), name: "iommu", on: master, log: log)
      }, as: MachineError.configuration)
  }

  // MARK: Devices

  /// Plugs a device in, before ``boot()``.
  public func plug(_ description: DeviceDescription) throws(MachineError) -> PluggedDevice {
    let number = UInt8(2 + devices.count)
    guard number < 32 else { throw .missing("a machine has room for 30 devices") }
    let device = try PluggedDevice(description, on: self, number: number)
    devices.append(device)
    return device
  }

  func add<F: PCIFunction>(
    _ number: UInt8, _ make: (BusMaster) throws(ConfigurationError) -> F
  ) throws(MachineError) -> F {
    return try rethrowing(bus.add(at: PCISlot(number), make), as: MachineError.configuration)
  }

  func endpoint(_ number: UInt8) -> DMAEndpoint {
    let endpoint = DMAEndpoint(deviceMemory, requester: RequesterID(bus: 0, device: number, function: 0))
    if let frontUnit { endpoint.setIOMMU(frontUnit) }
    return endpoint
  }

  var logger: Logger { log }

  /// Firmware numbers the buses, and the guest starts the driver of its IOMMU.
  public func boot() throws(MachineError) {
    var firmware = PCIEnumerator(
      bus, memory: 0xE000_0000..<0xF000_0000, highMemory: 0x40_0000_0000..<0x50_0000_0000, io: 0x1000..<0x1_0000)
    for found in firmware.enumerate() { access[found.requester] = PCIBusAccess(bus, found) }
    guard let unit = unit as? VirtioIOMMUWithDriver else { return }
    let transport = try pciTransport(RequesterID(bus: 0, device: 1, function: 0), legacy: false)
    try unit.start(transport, on: guest.driverPlatform(nil), DriverOptions(wait: wait { _ = transport.takeISR() }))
  }

  func functionAccess(_ requester: RequesterID) throws(MachineError) -> PCIBusAccess {
    guard let access = access[requester] else {
      throw .missing("no function \(requester) was found: the machine was not booted")
    }
    return access
  }

  package func pciTransport(_ requester: RequesterID, legacy: Bool) throws(MachineError) -> PCIDriverTransport {
    let access = try functionAccess(requester)
    return try rethrowing(PCIDriverTransport(access, legacy: legacy), saying: MachineError.missing)
  }

  /// Waits for a device with the processor asleep between its interrupts, for as long as ``patience`` allows.
  package func wait(_ acknowledge: @escaping () -> Void) -> BoundedWait {
    let interrupts = interrupts
    return BoundedWait(attempts: patience) {
      // In this order: what comes between the two is found at the next look.
      interrupts.wait()
      acknowledge()
    }
  }

  /// Tells the IOMMU what a requester may reach, and returns its domain if it has one.
  package func setState(_ state: UnitState, of requester: RequesterID) throws(MachineError) -> UnitDomain? {
    try unit?.set(state, of: requester)
  }

  deinit {
    (unit as? VirtioIOMMUWithDriver)?.stop()
    for device in devices { device.reset() }
    unitFunction?.reset()
  }
}
