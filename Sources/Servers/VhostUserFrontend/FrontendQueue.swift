internal import DMA
public import HostIO
internal import SocketMessages
internal import Synchronization
internal import VhostUser
public import Virtio

/// A virtqueue that was given to a back-end: its kick, call and error. The driver handles its memory.
public final class FrontendQueue: Sendable {
  /// Which queue it is.
  public let index: Int
  /// Where it is, in the addresses that the device sees.
  public let layout: QueueLayout
  private let kickEvent: EventFD
  /// Signalled when buffers were used; drained by ``waitForCall(timeout:)``.
  public let call: EventFD
  /// Signalled when the back-end gave the queue up.
  public let error: EventFD
  private let connection: FrontendConnection?

  init(index: Int, layout: QueueLayout, inband connection: FrontendConnection?) throws(HostError) {
    self.index = index
    self.layout = layout
    self.connection = connection
    kickEvent = try EventFD()
    call = try EventFD()
    error = try EventFD()
  }

  /// Says that buffers are available: the eventfd, or a message if notifications are in-band.
  public func kick() {
    guard let connection else {
      kickEvent.signal()
      return
    }
    let request = FrontendRequest.vringKick(VringState(index: UInt32(index), number: 0))
    // If the connection is gone there is no device to kick.
    try? connection.send(request.encoded(), request: request.kind.rawValue, expecting: nil)
  }

  var kickDescriptor: Int32 { kickEvent.rawValue }

  /// Waits for a call. False if the time was over first.
  public func waitForCall(timeout: Duration) -> Bool {
    do throws(HostError) {
      guard try call.wait(timeout: timeout) else { return false }
      try call.drain()
      return true
    } catch {
      return false
    }
  }
}

extension QueueState {
  /// The number of SET_VRING_BASE and GET_VRING_BASE: split, the available index; packed, two offsets of 15 bits, each
  /// with its wrap counter above it.
  func vringBase(packed: Bool) -> UInt32 {
    guard packed else { return UInt32(available) }
    let low = UInt32(available & 0x7fff) | (availableWrap ? 0x8000 : 0)
    let high = UInt32((used ?? available) & 0x7fff) | (usedWrap ? 0x8000 : 0)
    return low | high << 16
  }

  /// What a back-end answered to GET_VRING_BASE.
  init(vringBase number: UInt32, packed: Bool) {
    guard packed else {
      self.init(available: UInt16(truncatingIfNeeded: number), used: nil)
      return
    }
    self.init(
      available: UInt16(number & 0x7fff), availableWrap: number & 0x8000 != 0, used: UInt16(number >> 16 & 0x7fff),
      usedWrap: number >> 31 != 0)
  }
}

extension Frontend {
  /// Starts a queue whose areas are at `layout`, in device addresses: those of the mappings with ACCESS_PLATFORM,
  /// guest-physical ones without.
  ///
  /// - Parameters:
  ///   - state: where to go on, `QueueState.initial` for a new ring.
  ///   - enabled: false leaves the queue without effects until ``enable(_:_:)``.
  ///   - polled: the back-end is given no kick, and so has to poll.
  ///   - kicked: the kick is signalled before it is passed, for what is available already; means nothing with `polled`.
  public func startQueue(
    _ index: Int, layout: QueueLayout, resumingAt state: QueueState = .initial, enabled: Bool = true,
    polled: Bool = false,
    kicked: Bool = false
  ) throws(FrontendError) -> FrontendQueue {
    guard index >= 0, index < 256 else { throw .misuse("a queue's index is 0 to 255, not \(index)") }
    let (features, common, logs) = session.withLock { ($0.features, $0.protocolFeatures, $0.logsUsed) }
    let inband = common.contains(.inbandNotifications)
    let number = UInt32(index)
    let queue = try rethrowing(
      FrontendQueue(index: index, layout: layout, inband: inband ? connection : nil), as: FrontendError.host)
    let packed = features.contains(.ringPacked)
    try send(.setVringSize(VringState(index: number, number: UInt32(layout.size))))
    try send(.setVringBase(VringState(index: number, number: state.vringBase(packed: packed))))
    var address = VringAddress(
      index: number, descriptorArea: try wireAddress(layout.descriptorArea, features, common),
      driverArea: try wireAddress(layout.driverArea, features, common),
      deviceArea: try wireAddress(layout.deviceArea, features, common))
    if logs {
      address.flags = VringAddress.logUsed
      address.log = layout.deviceArea.rawValue
    }
    try send(.setVringAddress(address))
    let small = UInt8(index)
    if inband {
      // No descriptor at all: an explicit "no descriptor" would mean that no calls are wanted.
      translator.setEvents(number, call: queue.call, error: queue.error)
    } else {
      try send(.setVringCall(VringDescriptor(index: small, hasDescriptor: true)), descriptors: [queue.call.rawValue])
      try send(.setVringError(VringDescriptor(index: small, hasDescriptor: true)), descriptors: [queue.error.rawValue])
    }
    if kicked, !inband { queue.kick() }
    // Last, because it starts the queue.
    if inband, !polled {
      try send(.vringKick(VringState(index: number, number: 0)))
    } else {
      try send(
        .setVringKick(VringDescriptor(index: small, hasDescriptor: !polled)),
        descriptors: polled ? [] : [queue.kickDescriptor])
    }
    if enabled, features.contains(Self.protocolFeaturesBit) { try enable(index, true) }
    return queue
  }

  /// What a ring area's address is in SET_VRING_ADDR (R100).
  private func wireAddress(
    _ address: DMAAddress, _ features: Features, _ common: ProtocolFeatures
  ) throws(FrontendError) -> UInt64 {
    if AddressPath(negotiated: features) == .platform || common.contains(.guestAddresses) { return address.rawValue }
    guard let frontend = memory.frontendAddress(of: GuestAddress(address.rawValue)) else {
      throw .misuse("a ring area at guest address \(address.rawValue) is in no region")
    }
    return frontend.rawValue
  }

  /// Lets a queue have effects, or not.
  public func enable(_ index: Int, _ on: Bool) throws(FrontendError) {
    try send(.setVringEnable(VringState(index: UInt32(clamping: index), number: on ? 1 : 0)))
  }

  /// Stops a queue. When this returns the back-end touches neither the ring nor any buffer of it any more.
  ///
  /// - Parameter meanwhile: called when the back-end has been told, and has not answered yet.
  /// - Returns: where the queue stopped.
  public func stopQueue(_ index: Int, meanwhile: () -> Void = {}) throws(FrontendError) -> QueueState {
    let number = UInt32(clamping: index)
    let stop = FrontendRequest.getVringBase(VringState(index: number, number: 0))
    guard case .vring(let state) = try exchange(stop, meanwhile: meanwhile).reply else {
      throw .violation(ProtocolError("GET_VRING_BASE", "its answer is no queue's state"))
    }
    guard state.index == number else {
      throw .violation(ProtocolError("GET_VRING_BASE", "the answer is for queue \(state.index), not \(number)"))
    }
    translator.setEvents(number, call: nil, error: nil)
    return QueueState(vringBase: state.number, packed: features.contains(.ringPacked))
  }
}
