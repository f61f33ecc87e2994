public import DMA
public import HostIO
public import Logging
import Synchronization
public import Virtio

/// How a device behind a register interface interrupts its driver. Called on queue threads and wherever a configuration
/// changes: must not wait for a queue thread or a register access.
public protocol DeviceInterrupts: Sendable {
  /// A used buffer notification for a queue (§2.3).
  func usedBuffers(_ index: Int)
  /// A configuration change notification (§2.3).
  func configurationChanged()
  /// The device was reset: all that was pending or mapped is forgotten.
  func reset()
}

/// A device behind registers that a driver reads and writes: negotiation, status, queues, configuration, on any bus.
///
/// Any processor's thread may call it. A call may wait for queue threads; they never wait for it. A kick takes no lock.
public final class DeviceControl: Sendable {
  /// A queue as the driver has programmed it. Addresses are what the driver wrote (R040).
  public struct QueueRegisters: Hashable, Sendable {
    public var size: UInt16
    public var descriptorArea: UInt64 = 0
    public var driverArea: UInt64 = 0
    public var deviceArea: UInt64 = 0
    public var isEnabled = false

    var layout: QueueLayout {
      QueueLayout(
        size: size, descriptorArea: DMAAddress(descriptorArea), driverArea: DMAAddress(driverArea),
        deviceArea: DMAAddress(deviceArea))
    }
  }
  /// One of a queue's three areas.
  public enum Area: Sendable { case descriptor, driver, device }

  struct State {
    var negotiation: DeviceNegotiation
    var queues: [QueueRegisters]
    /// Where suspended queues go on.
    var suspended: [Int: QueueState] = [:]
    /// Why FEATURES_OK did not stick the last time that a driver set it.
    var refusal: String?
  }
  public let device: any VirtioDevice
  /// What is offered, the platform's bit included.
  public let offeredFeatures: Features
  let state: Mutex<State>
  let runner: DeviceRunner
  let alarm: ConfigurationNotifier
  private let kicks: [EventFD]
  private let interrupts: any DeviceInterrupts
  private let hiddenFeatures: Features
  private let space: @Sendable (AddressPath) -> (any DMASpace)?
  private let log: Logger

  /// - Parameters:
  ///   - offered: what is offered to the driver.
  ///   - required: what of it a driver has to accept.
  ///   - hidden: what a handler never sees, although it is negotiated (R019).
  ///   - space: what a queue's addresses lead to, asked whenever a queue starts; nil: the device cannot work there.
  public init(
    _ device: any VirtioDevice, name: String, offering offered: Features,
    requiring required: Features = [.version1, .accessPlatform], hiding hidden: Features = [],
    interrupts: any DeviceInterrupts, log: Logger, space: @escaping @Sendable (AddressPath) -> (any DMASpace)?
  ) throws(HostError) {
    self.device = device
    offeredFeatures = offered
    hiddenFeatures = hidden
    self.interrupts = interrupts
    self.space = space
    self.log = log
    alarm = ConfigurationNotifier(interrupts)
    runner = DeviceRunner(device, name: name, events: alarm, log: log)
    var kicks: [EventFD] = []
    for _ in device.maxQueueSizes { kicks.append(try EventFD()) }
    self.kicks = kicks
    state = Mutex(
      State(
        negotiation: DeviceNegotiation(offered: offered, requiring: required), queues: Self.initialQueues(device)))
    for index in device.maxQueueSizes.indices { runner.setCall(index) { interrupts.usedBuffers(index) } }
    let alarm = alarm
    device.observeConfiguration { alarm.configurationChanged() }
  }

  deinit { runner.stopAll() }

  private static func initialQueues(_ device: any VirtioDevice) -> [QueueRegisters] {
    // A split queue's size is a power of two, and the format is not known yet.
    device.maxQueueSizes.map { QueueRegisters(size: splitSize($0)) }
  }

  private static func splitSize(_ most: UInt16) -> UInt16 { most == 0 ? 0 : 1 << UInt16(15 - most.leadingZeroBitCount) }

  /// What each queue has done.
  public var counts: [QueueStatistics.Counts] { runner.counts }
  /// How many queues there are.
  public var queueCount: Int { device.maxQueueSizes.count }
  /// Whether a queue runs.
  public func isRunning(_ index: Int) -> Bool { runner.isRunning(index) }

  // MARK: Status and features

  /// The device status field, as the driver reads it.
  public var status: DeviceStatus {
    var status = state.withLock { $0.negotiation.status }
    if alarm.needsReset { status.insert(.needsReset) }
    return status
  }

  /// What the driver and the device agreed on; empty before FEATURES_OK.
  public var negotiatedFeatures: Features { state.withLock { $0.negotiation.negotiated } }
  /// Why the last driver's features were refused; nil: they were not.
  public var refusal: String? { state.withLock { $0.refusal } }
  /// Whether the driver uses the legacy interface.
  public var isLegacy: Bool { state.withLock { $0.negotiation.isLegacy } }
  /// What the driver wrote, 32 bits from `32 * word` on.
  public func driverFeatures(word: UInt32) -> UInt32 {
    Self.word(state.withLock { $0.negotiation.driverFeatures }, word)
  }
  /// What is offered, 32 bits from `32 * word` on.
  public func deviceFeatures(word: UInt32) -> UInt32 { Self.word(offeredFeatures, word) }

  private static func word(_ features: Features, _ word: UInt32) -> UInt32 {
    word < 4 ? UInt32(truncatingIfNeeded: features.rawValue >> UInt128(32 * word)) : 0
  }

  /// What the driver accepts, 32 bits from `32 * word` on.
  public func accept(_ bits: UInt32, word: UInt32) {
    guard word < 4 else { return }
    state.withLock { $0.negotiation.accept(bits, word: Int(word)) }
  }

  /// A write to the device status field. 0 resets: afterwards the device touches no memory and remembers nothing
  /// (R060).
  public func setStatus(_ status: DeviceStatus) {
    state.withLock { state in take(state.negotiation.write(status), &state) }
  }

  func take(_ step: DeviceNegotiation.Step, _ state: inout State) {
    switch step {
    case .none: break
    case .featuresRefused:
      let negotiation = state.negotiation
      let missing = negotiation.requiredFeatures.subtracting(negotiation.driverFeatures)
      let extra = negotiation.driverFeatures.subtracting(offeredFeatures)
      let sentence =
        missing.isEmpty
        ? "it accepts what is not offered: \(Self.names(extra))"
        : "it does not accept \(Self.names(missing)), and has to"
      state.refusal = sentence
      log.warning("a driver's features are refused: \(sentence)")
    case .featuresAccepted:
      state.refusal = nil
      hearFeatures(state)
    case .reset:
      alarm.silence()
      runner.reset()
      for kick in kicks { _ = try? kick.drain() }
      state.queues = Self.initialQueues(device)
      state.suspended = [:]
      alarm.forget()
      interrupts.reset()
    case .driverReady:
      // FEATURES_OK may have come with the same write, and the legacy interface has none.
      hearFeatures(state)
      alarm.goLive(isLegacy: state.negotiation.isLegacy)
      for index in state.queues.indices where state.queues[index].isEnabled { start(index, &state) }
    case .driverFailed:
      alarm.silence()
      runner.stopAll()
    case .suspend:
      alarm.suspend()
      for index in state.queues.indices { state.suspended[index] = runner.stop(index) }
    case .resume:
      alarm.resume()
      let suspended = state.suspended
      state.suspended = [:]
      for index in suspended.keys.sorted() { start(index, &state, at: suspended[index]) }
    }
  }

  private static func names(_ features: Features) -> String {
    features.bits.map { bit in
      switch bit {
      case 32: "VIRTIO_F_VERSION_1"
      case 33: "VIRTIO_F_ACCESS_PLATFORM"
      default: "feature bit \(bit)"
      }
    }.joined(separator: ", ")
  }

  private func hearFeatures(_ state: borrowing State) {
    device.accepted(state.negotiation.negotiated.subtracting(hiddenFeatures))
  }

  /// Starts a queue; one that cannot start makes the device need a reset.
  func start(_ index: Int, _ state: inout State, at position: QueueState? = nil) {
    guard !runner.isRunning(index) else { return }
    let negotiated = state.negotiation.negotiated
    do throws(DeviceError) {
      guard let space = space(AddressPath(negotiated: negotiated)) else {
        throw DeviceError("its back-end cannot translate addresses, and an IOMMU is in front of it")
      }
      try runner.start(
        QueueStart(
          index: index, layout: state.queues[index].layout, features: negotiated.subtracting(hiddenFeatures),
          space: space,
          kick: kicks[index], state: position ?? .initial))
    } catch {
      log.warning("queue \(index) cannot start: \(error)")
      alarm.needsReset(index, .device(error.description))
    }
  }

  // MARK: Queues

  /// A queue's registers; of a queue that does not exist nil.
  public func queue(_ index: Int) -> QueueRegisters? {
    state.withLock { $0.queues.indices.contains(index) ? $0.queues[index] : nil }
  }

  /// The most descriptors that a queue of the negotiated format may have; 0 where there is no such queue.
  public func maxQueueSize(_ index: Int) -> UInt16 {
    guard device.maxQueueSizes.indices.contains(index) else { return 0 }
    let most = device.maxQueueSizes[index]
    return negotiatedFeatures.contains(.ringPacked) ? most : Self.splitSize(most)
  }

  /// Fewer descriptors than the most. What no queue of the negotiated format may have is ignored.
  public func setSize(_ size: UInt16, ofQueue index: Int) {
    changeQueue(index) { queue, isPacked in
      guard size > 0, size <= device.maxQueueSizes[index], isPacked || size & (size - 1) == 0 else { return }
      queue.size = size
    }
  }

  /// One half, or the whole, of an area's address.
  public func set(_ area: Area, ofQueue index: Int, bits: UInt64, mask: UInt64) {
    changeQueue(index) { queue, _ in
      switch area {
      case .descriptor: queue.descriptorArea = queue.descriptorArea & ~mask | bits & mask
      case .driver: queue.driverArea = queue.driverArea & ~mask | bits & mask
      case .device: queue.deviceArea = queue.deviceArea & ~mask | bits & mask
      }
    }
  }

  private func changeQueue(_ index: Int, _ body: (inout QueueRegisters, _ isPacked: Bool) -> Void) {
    state.withLock { state in
      guard state.queues.indices.contains(index), !state.queues[index].isEnabled, !state.negotiation.isLegacy else {
        return
      }
      body(&state.queues[index], state.negotiation.negotiated.contains(.ringPacked))
    }
  }

  /// Enables a queue, once features are negotiated (R008). It starts with the device, or at once if that is live.
  public func enableQueue(_ index: Int) {
    state.withLock { state in
      guard state.queues.indices.contains(index), !state.queues[index].isEnabled, state.queues[index].size > 0,
        state.negotiation.status.contains(.featuresOK), !state.negotiation.status.contains(.failed),
        !state.negotiation.status.contains(.suspend)
      else { return }
      state.queues[index].isEnabled = true
      if state.negotiation.status.contains(.driverOK) { start(index, &state) }
    }
  }

  /// Takes a queue back from the device, where a transport has a register for that (§4.2.2, QueueReady), and returns
  /// when the device no longer uses it. The driver's settings stay; the queue's position is lost.
  public func disableQueue(_ index: Int) {
    state.withLock { state in
      guard state.queues.indices.contains(index), state.queues[index].isEnabled, !state.negotiation.isLegacy else {
        return
      }
      _ = runner.stop(index)
      state.suspended[index] = nil
      state.queues[index].isEnabled = false
    }
  }

  /// Resets one queue (§2.6.1), and returns when the device no longer uses it.
  ///
  /// - Returns: whether it was done: VIRTIO_F_RING_RESET must be negotiated.
  @discardableResult
  public func resetQueue(_ index: Int) -> Bool {
    state.withLock { state in
      guard state.queues.indices.contains(index), state.negotiation.negotiated.contains(.ringReset) else {
        return false
      }
      _ = runner.stop(index)
      state.suspended[index] = nil
      state.queues[index] = Self.initialQueues(device)[index]
      return true
    }
  }

  /// An available buffer notification. Any number may be written here.
  public func kick(_ index: Int) {
    guard kicks.indices.contains(index) else { return }
    if alarm.mayStartLegacyQueues { startLegacyQueue(index) }
    kicks[index].signal()
  }

  // MARK: Configuration

  /// Changes when the configuration has changed since it was last read (§2.5.1).
  public var configurationGeneration: UInt32 { alarm.generation }

  /// Fills `bytes` from the configuration space; past its end they are 0.
  public func readConfiguration(at offset: Int, into bytes: inout MutableSpan<UInt8>) {
    device.readConfiguration(at: offset, into: &bytes)
    // After the read: if it may show a change, the generation increments, and the driver reads again.
    alarm.noteRead()
  }

  /// A driver's write to the configuration space; ignored while suspended (§3.4.2).
  public func writeConfiguration(at offset: Int, from bytes: Span<UInt8>) {
    guard !alarm.isSuspended else { return }
    device.writeConfiguration(at: offset, from: bytes)
  }
}
