internal import DMA
public import HostIO
internal import SocketMessages
internal import Synchronization
public import VhostUser
public import Virtio

/// The driver's end of a vhost-user connection, without a machine around it: enough to drive any back-end from a
/// program.
///
/// A session goes: ``negotiate(_:protocolFeatures:anew:)``, ``share()``,
/// ``startQueue(_:layout:resumingAt:enabled:polled:kicked:)`` for each queue, ``setStatus(_:)`` where it is negotiated;
/// then the driver handles the queues' memory and events (`DriverQueue`). ``FrontendMemory``, ``FrontendMappings`` and
/// ``FrontendInflight`` outlive the connection: a new front-end made with the same ones goes on where a back-end ended.
///
/// Every method waits at most `timeout` for each answer, may be called from any thread, and throws ``FrontendError``
/// for wrong messages of the back-end. A thread of its own answers the back-end's requests meanwhile.
public final class Frontend: Sendable {
  struct Session {
    var offered: Features = []
    var features: Features = []
    var offeredProtocol: ProtocolFeatures = []
    var protocolFeatures: ProtocolFeatures = []
    var queueCount = 1
    var shared: [RegionDescription] = []
    var logsUsed = false
    var hasOwner = false
    var acknowledgesAll = true
  }

  let connection: FrontendConnection
  let translator: FrontendTranslator
  private let thread: WorkerThread
  let session = Mutex(Session())
  /// The guest's memory.
  public let memory: FrontendMemory
  /// The IOMMU.
  public let mappings: FrontendMappings
  /// How long one answer may take.
  public let timeout: Duration

  /// `VHOST_USER_F_PROTOCOL_FEATURES`: the back-end has protocol features, and queues start disabled.
  public static let protocolFeaturesBit = Features(bit: VhostFeature.protocolFeaturesBit)
  /// `VHOST_F_LOG_ALL`: writes are logged.
  public static let logAllBit = Features(bit: VhostFeature.logAllBit)

  /// Talks over a connected socket.
  public init(
    _ socket: UnixSocket, memory: FrontendMemory = FrontendMemory(), mappings: FrontendMappings = FrontendMappings(),
    timeout: Duration = .seconds(5)
  ) throws(FrontendError) {
    self.memory = memory
    self.mappings = mappings
    self.timeout = timeout
    let connection = try rethrowing(FrontendConnection(socket, timeout: timeout), as: FrontendError.host)
    let translator = try rethrowing(FrontendTranslator(connection, memory, mappings), as: FrontendError.host)
    self.connection = connection
    self.translator = translator
    thread = try rethrowing(
      WorkerThread(name: "front-end") { connection.run(translator) }, as: FrontendError.host)
  }

  /// Connects to a back-end's socket file.
  public static func connect(
    to path: String, memory: FrontendMemory = FrontendMemory(), mappings: FrontendMappings = FrontendMappings(),
    timeout: Duration = .seconds(5)
  ) throws(FrontendError) -> Frontend {
    let socket = try rethrowing(UnixSocket.connect(to: path, timeout: timeout), as: FrontendError.host)
    return try Frontend(socket, memory: memory, mappings: mappings, timeout: timeout)
  }

  deinit { close() }

  /// Ends the connection, as a front-end that dies would. Later calls throw.
  public func close() {
    connection.stop()
    thread.join()
  }

  /// Ends the back-end's channel, and not the connection: what a back-end may see first of a front-end that dies.
  /// Translations that it asked for are not answered any more.
  public func closeChannel() { connection.stopChannel() }

  /// Waits until the back-end ends the connection. False if the time was over first.
  public func waitUntilClosed(timeout: Duration) -> Bool {
    (try? connection.ended.wait(timeout: timeout)) ?? false
  }

  /// Why the connection ended, or nil while it is alive.
  public var failure: FrontendError? { connection.failure }

  // MARK: What was agreed

  /// What the device offers.
  public var offered: Features { session.withLock { $0.offered } }
  /// What is in force.
  public var features: Features { session.withLock { $0.features } }
  /// What the back-end can do beyond the basics.
  public var offeredProtocolFeatures: ProtocolFeatures { session.withLock { $0.offeredProtocol } }
  /// What of that is in force.
  public var protocolFeatures: ProtocolFeatures { session.withLock { $0.protocolFeatures } }
  /// How many queues the back-end has at most.
  public var queueCount: Int { session.withLock { $0.queueCount } }

  /// Whether requests without an answer of their own ask for an acknowledgement, once REPLY_ACK is negotiated. True at
  /// first.
  public func acknowledgeAll(_ on: Bool) { session.withLock { $0.acknowledgesAll = on } }

  /// Protocol features this front-end can use.
  public static let usableProtocolFeatures: ProtocolFeatures = [
    .multiqueue, .logSharedMemory, .replyAck, .backendRequests, .configuration, .backendSendDescriptor,
    .inflightSharedMemory,
    .resetDevice, .inbandNotifications, .configureMemorySlots, .status, .deviceState, .vringBaseInflight,
    .guestAddresses,
  ]

  /// What a front-end negotiates that has no reason not to: everything usable but what changes how queues are driven.
  public static let usualProtocolFeatures = usableProtocolFeatures.subtracting([
    .inbandNotifications, .guestAddresses, .vringBaseInflight,
  ])

  /// Starts a session: learns what the back-end offers and puts in force what of `wanted` it does. Again after a reset,
  /// for the next driver of the same device: the owner is set once.
  ///
  /// - Parameter anew: whether another life of the device begins on this connection, with its owner set again.
  /// - Throws: ``FrontendError/notNegotiated(_:needs:)`` if ACCESS_PLATFORM would be in force without REPLY_ACK and
  ///   BACKEND_REQ (R122).
  /// - Returns: the features in force.
  @discardableResult
  public func negotiate(
    _ wanted: Features, protocolFeatures wantedProtocol: ProtocolFeatures = Frontend.usualProtocolFeatures,
    anew: Bool = false
  ) throws(FrontendError) -> Features {
    let offered = Features(word: try ask(.getFeatures))
    let hasProtocol = offered.contains(Self.protocolFeaturesBit)
    var common: ProtocolFeatures = []
    if hasProtocol {
      let offeredProtocol = ProtocolFeatures(rawValue: try ask(.getProtocolFeatures))
      common = offeredProtocol.intersection(wantedProtocol)
      try send(.setProtocolFeatures(common))
      let agreed = common
      session.withLock { session in
        session.offeredProtocol = offeredProtocol
        session.protocolFeatures = agreed
      }
      translator.setGuestAddresses(common.contains(.guestAddresses))
    }
    session.withLock { $0.offered = offered }
    let isOwned = session.withLock { session in
      defer { session.hasOwner = true }
      return session.hasOwner
    }
    // QEMU's order: the channel of a device's life comes before the SET_OWNER that begins it.
    if common.contains(.backendRequests) { try openChannel() }
    if anew || !isOwned { try send(.setOwner) }
    if common.contains(.multiqueue) {
      let count = try ask(.getQueueCount)
      session.withLock { $0.queueCount = Int(clamping: count) }
    }
    return try setFeatures(hasProtocol ? wanted.union(Self.protocolFeaturesBit) : wanted)
  }

  /// Puts in force what of `wanted` is offered; again at any time, to switch logging.
  @discardableResult
  public func setFeatures(_ wanted: Features) throws(FrontendError) -> Features {
    let (offered, common) = session.withLock { ($0.offered, $0.protocolFeatures) }
    let features = offered.intersection(wanted)
    if AddressPath(negotiated: features) == .platform, !common.isSuperset(of: [.replyAck, .backendRequests]) {
      throw .notNegotiated("SET_FEATURES with ACCESS_PLATFORM", needs: "REPLY_ACK and BACKEND_REQ")
    }
    try send(.setFeatures(features.word))
    session.withLock { $0.features = features }
    return features
  }

  private func openChannel() throws(FrontendError) {
    let (ours, theirs) = try rethrowing(UnixSocket.pair(), as: FrontendError.host)
    try send(.setBackendRequestDescriptor, descriptors: [theirs.rawValue])
    withExtendedLifetime(theirs) {}
    connection.setChannel(ours)
  }

  // MARK: Requests

  /// Sends a request that has no answer of its own, and waits for its acknowledgement if one can be had.
  public func send(_ request: FrontendRequest, descriptors: [Int32] = []) throws(FrontendError) {
    let acknowledged = session.withLock { $0.acknowledgesAll && $0.protocolFeatures.contains(.replyAck) }
    guard acknowledged || request.hasAnswer else {
      try connection.send(request.encoded(), request: request.kind.rawValue, descriptors: descriptors, expecting: nil)
      return
    }
    let answer = try exchange(request, needsReply: acknowledged, descriptors: descriptors)
    guard case .value(0) = answer.reply else {
      if case .value(let code) = answer.reply { throw .refused(request.name, code: code) }
      throw .violation(ProtocolError(request.name, "its acknowledgement is no number"))
    }
  }

  /// Sends a request whose answer is a number.
  public func ask(_ request: FrontendRequest) throws(FrontendError) -> UInt64 {
    guard case .value(let word) = try exchange(request).reply else {
      throw .violation(ProtocolError(request.name, "its answer is no number"))
    }
    return word
  }

  struct Answer: ~Copyable {
    var reply: BackendReply
    var descriptors: FileDescriptorList
  }

  /// Sends a request and waits for its answer.
  ///
  /// - Parameter meanwhile: called when the request has been sent.
  func exchange(
    _ request: FrontendRequest, needsReply: Bool = false, descriptors: [Int32] = [], meanwhile: () -> Void = {}
  ) throws(FrontendError) -> Answer {
    let answer = try FrontendAnswer()
    let kind = request.kind
    try connection.send(
      request.encoded(needsReply: needsReply), request: kind.rawValue, descriptors: descriptors,
      expecting: .wake(answer))
    meanwhile()
    var message = try answer.wait(for: request.name, timeout: timeout)
    let payload = message.payload
    let reply = try rethrowing(BackendReply(to: kind, payload: payload), as: FrontendError.violation)
    var passed = FileDescriptorList()
    while let one = message.descriptors.takeFirst() { passed.append(one) }
    return Answer(reply: reply, descriptors: passed)
  }

  /// Sends bytes as they are: for tests of what a back-end does about a broken message. Answers to them are a violation
  /// unless `answers` says how many, of request number `request`, will come; those are dropped.
  public func sendRaw(
    _ bytes: [UInt8], descriptors: [Int32] = [], request: UInt32 = 0, answers: Int = 0
  ) throws(FrontendError) {
    try connection.send(
      bytes, request: request, descriptors: descriptors, expecting: answers > 0 ? .nothing : nil)
    for _ in 1..<max(1, answers) { try connection.send([], request: request, expecting: .nothing) }
  }

  func require(_ feature: ProtocolFeatures, _ name: String, for request: String) throws(FrontendError) {
    guard protocolFeatures.contains(feature) else { throw .notNegotiated(request, needs: name) }
  }
}
