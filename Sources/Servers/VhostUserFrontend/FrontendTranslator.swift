internal import DMA
internal import HostIO
internal import Synchronization
internal import VhostUser

/// Answers a back-end's requests from the front-end's mappings, or as badly as a test wants.
final class FrontendTranslator: FrontendChannelDelegate {
  private struct Miss {
    var message: IOTLBMessage
    var needsReply: Bool
  }
  private struct State {
    var policy: @Sendable (IOTLBMessage) -> MissAnswer = { _ in .fromMappings }
    var held: [Miss] = []
    var released: [Miss] = []
    var delayed: [(due: ContinuousClock.Instant, miss: Miss)] = []
    var counts = FrontendCounts()
    var calls: [UInt32: EventFD] = [:]
    var errors: [UInt32: EventFD] = [:]
    var usesGuestAddresses = false
    var granule: UInt64?
  }

  private let connection: FrontendConnection
  private let memory: FrontendMemory
  private let mappings: FrontendMappings
  private let state = Mutex(State())
  /// Held while a mapping is looked up and sent, and while one is removed: no UPDATE of it is sent after its
  /// INVALIDATE.
  private let telling = Mutex(())
  let configurationChanged: EventFD
  /// Signalled for every miss that is held.
  let missHeld: EventFD
  let accessFailed: EventFD

  init(_ connection: FrontendConnection, _ memory: FrontendMemory, _ mappings: FrontendMappings) throws(HostError) {
    self.connection = connection
    self.memory = memory
    self.mappings = mappings
    configurationChanged = try EventFD()
    missHeld = try EventFD()
    accessFailed = try EventFD()
  }

  var counts: FrontendCounts {
    var counts = state.withLock { $0.counts }
    counts.refusedUpdates = connection.refusedUpdates.load(ordering: .relaxed)
    return counts
  }

  func setPolicy(_ policy: @escaping @Sendable (IOTLBMessage) -> MissAnswer) { state.withLock { $0.policy = policy } }
  func setGuestAddresses(_ on: Bool) { state.withLock { $0.usesGuestAddresses = on } }
  func setGranule(_ bytes: UInt64?) { state.withLock { $0.granule = bytes } }

  func setEvents(_ index: UInt32, call: EventFD?, error: EventFD?) {
    state.withLock { state in
      state.calls[index] = call
      state.errors[index] = error
    }
  }

  func count(_ body: @Sendable (inout FrontendCounts) -> Void) { state.withLock { body(&$0.counts) } }

  func release() {
    state.withLock { state in
      state.released += state.held
      state.held = []
    }
    connection.wakeup.signal()
  }

  // On the connection's thread

  func take(_ request: BackendRequest, needsReply: Bool) {
    switch request {
    case .iotlb(let message) where message.kind == .miss:
      let (policy, miss) = state.withLock { state in
        state.counts.misses += 1
        if needsReply { state.counts.acknowledgedMisses += 1 }
        if state.counts.missed.count < 1024 { state.counts.missed.append(message) }
        return (state.policy, Miss(message: message, needsReply: needsReply))
      }
      answer(miss, policy(message))
    case .iotlb(let message) where message.kind == .accessFail:
      state.withLock { state in
        state.counts.accessFailures += 1
        if state.counts.failed.count < 1024 { state.counts.failed.append(message) }
        accessFailed.signal()
      }
      if needsReply { reply(request, 0) }
    case .iotlb:
      // Only the front-end gives and takes translations (R124).
      state.withLock { $0.counts.strays += 1 }
      if needsReply { reply(request, 1) }
    case .configurationChange:
      state.withLock { $0.counts.configurationChanges += 1 }
      configurationChanged.signal()
      if needsReply { reply(request, 0) }
    case .vringCall(let vring):
      let call = state.withLock { $0.calls[vring.index] }
      call?.signal()
      if needsReply { reply(request, call == nil ? 1 : 0) }
    case .vringError(let vring):
      let error = state.withLock { $0.errors[vring.index] }
      error?.signal()
      if needsReply { reply(request, error == nil ? 1 : 0) }
    }
  }

  var nextDeadline: Duration? {
    guard let due = state.withLock({ $0.delayed.map(\.due).min() }) else { return nil }
    return max(.zero, due - .now)
  }

  func doDelayed() {
    let now = ContinuousClock.now
    let due = state.withLock { state in
      let due = state.delayed.filter { $0.due <= now }
      state.delayed.removeAll { $0.due <= now }
      return due
    }
    for one in due { answer(one.miss, .fromMappings) }
  }

  func doReleased() {
    let released = state.withLock { state in
      let released = state.released
      state.released = []
      return released
    }
    for miss in released { answer(miss, .fromMappings) }
  }

  private func reply(_ request: BackendRequest, _ code: UInt64) { connection.answer(request.kind.rawValue, code) }

  /// Removes mappings. Updates about them are sent before this returns.
  func unmap(from first: DMAAddress, through last: DMAAddress) {
    telling.withLock { _ in mappings.remove(from: first, through: last) }
  }

  private func answer(_ miss: Miss, _ how: MissAnswer) { telling.withLock { _ in tell(miss, how) } }

  private func tell(_ miss: Miss, _ how: MissAnswer) {
    let request = BackendRequest.iotlb(miss.message)
    switch how {
    case .fromMappings, .twice, .generous:
      guard var update = update(for: miss.message) else {
        state.withLock { $0.counts.refusals += 1 }
        if miss.needsReply { reply(request, 1) }
        return
      }
      if how == .generous { update.permission = [.read, .write] }
      if how == .twice { post(update, thenMiss: false) }
      post(update, thenMiss: miss.needsReply)
    case .refuse:
      state.withLock { $0.counts.refusals += 1 }
      if miss.needsReply { reply(request, 1) }
    case .silence: break
    case .after(let delay): state.withLock { $0.delayed.append((.now + delay, miss)) }
    case .hold:
      state.withLock { $0.held.append(miss) }
      missHeld.signal()
    case .emptySuccess: if miss.needsReply { reply(request, 0) }
    case .messages(let messages):
      for message in messages { post(message, thenMiss: false) }
      if miss.needsReply { reply(request, 0) }
    }
  }

  /// The UPDATE that answers a miss, or nil if the mappings do not allow the access.
  func update(for miss: IOTLBMessage) -> IOTLBMessage? {
    guard let mapping = mappings.mapping(at: DMAAddress(miss.address)),
      mapping.permission.isSuperset(of: miss.permission)
    else {
      return nil
    }
    return update(mapping, around: miss.address)
  }

  /// The UPDATE for `mapping`, or for the granule of it that is around `address`.
  func update(_ mapping: FrontendMapping, around address: UInt64) -> IOTLBMessage? {
    let (granule, guest) = state.withLock { ($0.granule, $0.usesGuestAddresses) }
    var first = mapping.address.rawValue
    var last = mapping.last
    if let granule {
      first = max(first, address / granule * granule)
      last = min(last, address / granule * granule &+ (granule - 1))
    }
    let target = GuestAddress(mapping.guestAddress.rawValue &+ (first - mapping.address.rawValue))
    guard let frontend = guest ? FrontendAddress(target.rawValue) : memory.frontendAddress(of: target) else {
      return nil
    }
    return IOTLBMessage(
      kind: .update, address: first, size: last - first &+ 1, frontendAddress: frontend.rawValue,
      permission: mapping.permission)
  }

  private func post(_ message: IOTLBMessage, thenMiss: Bool) {
    state.withLock { $0.counts.updates += 1 }
    let bytes = FrontendRequest.iotlb(message).encoded(needsReply: true)
    // If the connection is gone there is no receiver.
    try? connection.send(bytes, request: FrontendRequest.Kind.iotlb.rawValue, expecting: .update(thenMiss: thenMiss))
  }
}
