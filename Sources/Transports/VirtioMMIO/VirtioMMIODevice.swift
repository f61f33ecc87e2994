internal import DMA
import HostIO
public import IOMMUInterface
public import Logging
import Synchronization
public import Virtio
public import VirtioServing

/// A virtio device behind memory-mapped registers (§4.2): those of virtio 1, or those of a legacy device.
///
/// Its registers are accessed by processors' threads, which may wait for queue threads; its queues reach memory through
/// its `DMAEndpoint`, by the path that the negotiated features select. The legacy interface is little-endian, so a
/// machine whose guests are not must leave it out.
public final class VirtioMMIODevice: Sendable {
  /// What the driver selects.
  struct Selection: Sendable {
    var deviceFeatures: UInt32 = 0
    var driverFeatures: UInt32 = 0
    var queue: UInt32 = 0
    /// Legacy: QueueAlign by queue, where it was written.
    var alignments: [UInt32: UInt32] = [:]
  }
  /// The choices that the options led to.
  public let choices: VirtioMMIOChoices
  /// The device behind the registers.
  public let control: DeviceControl
  /// Its path to memory.
  public let endpoint: DMAEndpoint
  let interrupts: InterruptLine
  let selection = Mutex(Selection())
  /// Legacy: GuestPageSize, 0 before it was written.
  let guestPageSize = Mutex<UInt32>(0)
  let vendorID: UInt32

  /// The registers of `device`.
  ///
  /// - Parameters:
  ///   - name: what its threads are called.
  ///   - line: drives the interrupt: asserted or not. Called on queue threads and in register accesses, one call at a
  ///     time; must not wait for either.
  /// - Throws: options that exclude each other, or what the device cannot do there (R018, R023).
  public init(
    _ device: any VirtioDevice, _ options: VirtioMMIOOptions = VirtioMMIOOptions(), name: String = "queue",
    at endpoint: DMAEndpoint,
    line: @escaping @Sendable (Bool) -> Void, log: Logger
  ) throws(ConfigurationError) {
    let choices = try VirtioMMIOChoices(options, id: device.id, isBehindIOMMU: endpoint.isBehindIOMMU)
    let interrupts = InterruptLine(line)
    let translates = options.backendTranslates
    control = try rethrowing(
      DeviceControl(
        device, name: name, offering: Self.features(device, options, choices),
        hiding: choices.hidesAccessPlatform ? [.accessPlatform] : [],
        interrupts: interrupts, log: log
      ) { path in
        switch path {
        case .platform: translates || !endpoint.isBehindIOMMU ? endpoint.translated : nil
        case .physical: endpoint.physical
        }
      }, saying: { ConfigurationError(option: name, why: $0, hint: "give this process more file descriptors") })
    self.choices = choices
    self.endpoint = endpoint
    self.interrupts = interrupts
    vendorID = options.vendorID
  }

  /// The device's features, with those of the transport.
  private static func features(
    _ device: any VirtioDevice, _ options: VirtioMMIOOptions, _ choices: VirtioMMIOChoices
  ) -> Features {
    // Bits for what this transport has not (§4.2.5, §6).
    var features = device.features.subtracting([
      .accessPlatform, .singleRootIOV, .administrationQueue, .suspend, .notificationConfigurationData,
    ])
    if choices.isLegacy { return features.intersection(Features(word: 0xffff_ffff)) }
    if options.offersSuspend { features.insert(.suspend) }
    if choices.offersAccessPlatform { features.insert(.accessPlatform) }
    return features
  }

  /// Bytes from the first register to the end of the device's configuration: what the machine has to decode.
  public var byteCount: UInt64 { UInt64(MMIOTransport.Register.configuration + control.device.configurationSize) }

  /// As at power on: what a reset by status leaves alone is forgotten too.
  public func reset() {
    if choices.isLegacy { control.setLegacyStatus([]) } else { control.setStatus([]) }
    selection.withLock { $0 = Selection() }
    guestPageSize.withLock { $0 = 0 }
  }

  // MARK: Accesses

  /// Reads 1, 2, 4 or 8 bytes at an offset from the first register. Registers are read whole, 32 bits wide and aligned
  /// (§4.2.2.2); other accesses to them, and to offsets without a register, read 0.
  public func read(at offset: UInt64, width: Int) -> UInt64 {
    guard offset <= UInt64(Int32.max) else { return 0 }
    let at = Int(offset)
    if at >= MMIOTransport.Register.configuration {
      return readConfiguration(at: at - MMIOTransport.Register.configuration, width: width)
    }
    guard width == 4, at % 4 == 0 else { return 0 }
    return UInt64(readRegister(at))
  }

  /// Writes 1, 2, 4 or 8 bytes, by the same rule: other accesses change nothing.
  public func write(at offset: UInt64, width: Int, _ value: UInt64) {
    guard offset <= UInt64(Int32.max) else { return }
    let at = Int(offset)
    if at >= MMIOTransport.Register.configuration {
      return writeConfiguration(at: at - MMIOTransport.Register.configuration, width: width, value)
    }
    guard width == 4, at % 4 == 0 else { return }
    writeRegister(at, UInt32(truncatingIfNeeded: value))
  }

  private func readConfiguration(at offset: Int, width: Int) -> UInt64 {
    var block = InlineArray<8, UInt8>(repeating: 0)
    var bytes = block.mutableSpan
    control.readConfiguration(at: offset, into: &bytes)
    var value: UInt64 = 0
    for i in 0..<min(max(width, 0), 8) { value |= UInt64(block[i]) << UInt64(8 * i) }
    return value
  }

  private func writeConfiguration(at offset: Int, width: Int, _ value: UInt64) {
    var block = InlineArray<8, UInt8>(repeating: 0)
    for i in block.indices { block[i] = UInt8(truncatingIfNeeded: value >> UInt64(8 * i)) }
    control.writeConfiguration(at: offset, from: block.span.extracting(0..<min(max(width, 0), 8)))
  }
}
