internal import DMA
import HostIO
public import Logging
public import PCI
import Synchronization
public import Virtio
public import VirtioServing

/// A virtio device as a PCI function (§4.1): modern, transitional or legacy.
///
/// Its registers are accessed by processors' threads, which may wait for queue threads; its queues reach memory through
/// the function's `BusMaster`, by the path that the negotiated features select. The legacy interface is little-endian,
/// so a machine whose guests are not must disable it.
public final class VirtioPCIFunction: PCIFunction {
  /// What the driver selects, and where notifications go by the device's own numbers.
  struct Selection: Sendable {
    var deviceFeatures: UInt32 = 0
    var driverFeatures: UInt32 = 0
    var queue: UInt16 = 0
  }
  public let configuration: ConfigurationSpace
  /// The choices that the options led to.
  public let choices: VirtioPCIChoices
  /// The device behind the registers.
  public let control: DeviceControl
  let layout: VirtioPCILayout
  let interrupts: VirtioInterrupts
  let selection = Mutex(Selection())
  /// VIRTIO_F_NOTIF_CONFIG_DATA is negotiated: notifications name queues by ``notificationData(_:)``.
  let namesQueuesByData = Atomic<Bool>(false)
  /// Every access takes the translated path: see ``VirtioPCIOptions/isHardware``.
  let isHardware: Bool
  /// See ``VirtioPCIOptions/isIOMMUElsewhere``.
  let isIOMMUElsewhere: Bool
  private let msix: MSIX?
  private let master: BusMaster

  /// A function for `device` in the slot that `master` belongs to.
  ///
  /// - Parameter name: what its threads are called.
  /// - Throws: options that exclude each other, or what the device cannot do there (R018, R023).
  public init(
    _ device: any VirtioDevice, _ options: VirtioPCIOptions = VirtioPCIOptions(), name: String = "queue",
    on master: BusMaster, log: Logger
  )
    throws(ConfigurationError)
  {
    let choices = try VirtioPCIChoices(options, id: device.id, isBehindIOMMU: master.isBehindIOMMU)
    let layout = VirtioPCILayout(device, options, choices.interface)
    let msix = layout.vectors > 0 ? MSIX(count: layout.vectors, master) : nil
    let intx = INTx(.a, of: master)
    let interrupts = VirtioInterrupts(queues: device.maxQueueSizes.count, msix, intx)
    let translates = options.backendTranslates
    let isHardware = options.isHardware
    control = try rethrowing(
      DeviceControl(
        device, name: name, offering: Self.features(device, options, choices),
        requiring: options.isAccessPlatformOptional ? .version1 : [.version1, .accessPlatform],
        hiding: choices.hidesAccessPlatform ? [.accessPlatform] : [],
        interrupts: interrupts, log: log
      ) { path in
        switch path {
        case .platform: translates || !master.isBehindIOMMU ? master.translated : nil
        case .physical: isHardware ? master.translated : master.physical
        }
      }, saying: { ConfigurationError(option: name, why: $0, hint: "give this process more file descriptors") })
    configuration = ConfigurationSpace(layout.configuration, msix: msix, intx: intx)
    self.choices = choices
    self.isHardware = isHardware
    isIOMMUElsewhere = options.isIOMMUElsewhere
    self.layout = layout
    self.interrupts = interrupts
    self.msix = msix
    self.master = master
  }

  /// The device's features, with those of the transport.
  private static func features(
    _ device: any VirtioDevice, _ options: VirtioPCIOptions, _ choices: VirtioPCIChoices
  ) -> Features {
    // Bits for what this transport has not: virtual functions (R022) and administration virtqueues.
    var features = device.features.subtracting([
      .accessPlatform, .singleRootIOV, .administrationQueue, .suspend, .notificationConfigurationData,
    ]).subtracting(options.withheld)
    if choices.interface == .legacy { return features.intersection(Features(word: 0xffff_ffff)) }
    if options.offersSuspend { features.insert(.suspend) }
    if options.offersNotificationData { features.insert(.notificationConfigurationData) }
    if choices.offersAccessPlatform { features.insert(.accessPlatform) }
    return features
  }

  /// What a driver calls a queue in notifications, where VIRTIO_F_NOTIF_CONFIG_DATA is negotiated: not its index, so
  /// that one that did not look is noticed.
  static func notificationData(_ index: UInt16) -> UInt16 { ~index }

  // MARK: PCIFunction

  public func readConfiguration(at offset: Int, width: Int) -> UInt32 {
    accessWindow(offset, width) {
      read(structure: $0, width: $1).map { configuration.set(UInt32(truncatingIfNeeded: $0), at: dataAt, width: 4) }
    }
    return configuration.read(at: offset, width: width)
  }

  public func writeConfiguration(at offset: Int, width: Int, _ value: UInt32) {
    configuration.write(at: offset, width: width, value)
    accessWindow(offset, width) { write(structure: $0, width: $1, UInt64(configuration.read(at: dataAt, width: $1))) }
    interrupts.refresh()
  }

  public func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt64 {
    switch index {
    case VirtioPCILayout.modernBAR: read(structure: offset, width: width) ?? 0
    case VirtioPCILayout.msixBAR:
      offset < layout.pendingOffset
        ? msix?.readTable(at: offset, width: width) ?? 0
        : msix?.readPending(at: offset - layout.pendingOffset, width: width) ?? 0
    case VirtioPCILayout.legacyBAR: readLegacy(at: Int(truncatingIfNeeded: offset), width: width)
    default: 0
    }
  }

  public func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt64) {
    switch index {
    case VirtioPCILayout.modernBAR: write(structure: offset, width: width, value)
    case VirtioPCILayout.msixBAR: msix?.writeTable(at: offset, width: width, value)
    case VirtioPCILayout.legacyBAR: writeLegacy(at: Int(truncatingIfNeeded: offset), width: width, value)
    default: break
    }
  }

  public func reset() {
    setStatus([])
    configuration.reset()
    interrupts.refresh()
  }

  public func systemReset() {
    reset()
    control.device.systemReset()
  }

  // MARK: The window in configuration space (§4.1.4.9)

  private var dataAt: Int { (layout.accessAt ?? 0) + PCITransport.Capability.accessData }

  /// Calls `body` with the offset and width that the driver set, if an access touches the window's data and they are in
  /// the BAR.
  private func accessWindow(_ offset: Int, _ width: Int, _ body: (_ at: UInt64, _ width: Int) -> Void) {
    guard let at = layout.accessAt, offset < dataAt + 4, offset + width > dataAt else { return }
    let bar = configuration.read(at: at + PCITransport.Capability.bar, width: 1)
    let start = UInt64(configuration.read(at: at + PCITransport.Capability.offset, width: 4))
    let length = configuration.read(at: at + PCITransport.Capability.length, width: 4)
    guard Int(bar) == VirtioPCILayout.modernBAR, length == 1 || length == 2 || length == 4, start % UInt64(length) == 0,
      start + UInt64(length) <= layout.modernSize
    else { return }
    body(start, Int(length))
  }

  // MARK: Structures of virtio 1

  private func read(structure offset: UInt64, width: Int) -> UInt64? {
    switch offset {
    case ..<VirtioPCILayout.isrOffset: readCommon(at: Int(offset), width: width)
    case VirtioPCILayout.isrOffset: UInt64(interrupts.takeISR())
    case VirtioPCILayout.deviceOffset..<VirtioPCILayout.notifyOffset:
      readDevice(at: Int(offset - VirtioPCILayout.deviceOffset), width: width)
    default: 0
    }
  }

  private func write(structure offset: UInt64, width: Int, _ value: UInt64) {
    switch offset {
    case ..<VirtioPCILayout.isrOffset: writeCommon(at: Int(offset), width: width, value)
    case VirtioPCILayout.deviceOffset..<VirtioPCILayout.notifyOffset:
      writeDevice(at: Int(offset - VirtioPCILayout.deviceOffset), width: width, value)
    case VirtioPCILayout.notifyOffset...: notify(at: offset - VirtioPCILayout.notifyOffset, width: width, value)
    default: break
    }
  }

  private func notify(at offset: UInt64, width: Int, _ value: UInt64) {
    guard width >= 2 else { return }
    if layout.notifyStride > 0 {
      if offset % layout.notifyStride == 0 { control.kick(Int(offset / layout.notifyStride)) }
    } else if offset == 0 {
      // Bits above the lower 16 are a hint that is not needed here (§2.9).
      let name = UInt16(truncatingIfNeeded: value)
      control.kick(Int(namesQueuesByData.load(ordering: .acquiring) ? ~name : name))
    }
  }

  func readDevice(at offset: Int, width: Int) -> UInt64 {
    var block = InlineArray<8, UInt8>(repeating: 0)
    var bytes = block.mutableSpan
    control.readConfiguration(at: offset, into: &bytes)
    var value: UInt64 = 0
    for i in 0..<min(max(width, 0), 8) { value |= UInt64(block[i]) << UInt64(8 * i) }
    return value
  }

  func writeDevice(at offset: Int, width: Int, _ value: UInt64) {
    var block = InlineArray<8, UInt8>(repeating: 0)
    for i in block.indices { block[i] = UInt8(truncatingIfNeeded: value >> UInt64(8 * i)) }
    control.writeConfiguration(at: offset, from: block.span.extracting(0..<min(max(width, 0), 8)))
  }

  /// A write to the modern status register.
  func setStatus(_ status: DeviceStatus) {
    control.setStatus(status)
    if status.isEmpty { selection.withLock { $0 = Selection() } }
    namesQueuesByData.store(control.negotiatedFeatures.contains(.notificationConfigurationData), ordering: .releasing)
  }
}
