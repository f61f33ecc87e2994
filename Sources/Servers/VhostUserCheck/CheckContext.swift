internal import DMA
internal import Examination
internal import HostIO
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio

/// What checks work with: a way to the back-end, and what is known of it.
final class CheckContext: CheckedServer {
  let subject: any CheckSubject
  let device: DeviceProbe
  /// How long one answer, and one request, may take.
  let patience: Duration
  /// How long to look for something that must not happen.
  let quiet: Duration = .milliseconds(40)

  var offeredFeatures: Features = []
  var offeredProtocol: ProtocolFeatures = []
  var queueCount = 1
  /// What the first request brought.
  var reference: [UInt8]?
  /// The back-end ends with its front-end: that is its design and no crash, and the next front-end needs a new one.
  var endsWithConnection = false
  private var frontends: [Frontend] = []
  private var sockets: [UnixSocket] = []

  init(_ subject: any CheckSubject, _ device: DeviceProbe, patience: Duration) {
    self.subject = subject
    self.device = device
    self.patience = patience
  }

  /// A connection on which the back-end has answered GET_FEATURES.
  ///
  /// A back-end that is still busy with the end of the last connection may refuse the next one for a while.
  func connect(
    memory: FrontendMemory = FrontendMemory(), mappings: FrontendMappings = FrontendMappings()
  ) throws(Finding) -> Frontend {
    let end = ContinuousClock.now + patience
    while true {
      do throws(FrontendError) {
        let socket = try rethrowing(subject.connect(timeout: patience), as: FrontendError.host)
        let frontend = try Frontend(socket, memory: memory, mappings: mappings, timeout: patience)
        frontends.append(frontend)
        _ = try frontend.ask(.getFeatures)
        return frontend
      } catch {
        guard ContinuousClock.now < end else {
          if case .host(let host) = error { throw .broken("it cannot be connected to: \(host.reason)") }
          throw Finding(error)
        }
        if case .timedOut = error { throw Finding(error) }
      }
      try subject.getReady(endsWithConnection: endsWithConnection)
    }
  }

  /// A connection that sends any messages and bytes, rules or not.
  func raw() throws(Finding) -> RawConnection {
    let end = ContinuousClock.now + patience
    while true {
      let socket: UnixSocket
      do throws(HostError) {
        socket = try subject.connect(timeout: patience)
      } catch {
        guard ContinuousClock.now < end else { throw .broken("it cannot be connected to: \(error.reason)") }
        try subject.getReady(endsWithConnection: endsWithConnection)
        continue
      }
      sockets.append(socket)
      let connection = RawConnection(socket, patience: patience)
      if try connection.isAnswered() { return connection }
      guard ContinuousClock.now < end else { throw .broken("it closes every connection") }
      try subject.getReady(endsWithConnection: endsWithConnection)
    }
  }

  func isAnswered(_ socket: UnixSocket) throws(Finding) -> Bool {
    try RawConnection(socket, patience: patience).isAnswered()
  }

  /// A raw connection on which everything usual is negotiated.
  func negotiatedRaw() throws(Finding) -> RawConnection {
    let connection = try raw()
    let usual = offeredProtocol.intersection(Frontend.usualProtocolFeatures)
    if offeredFeatures.contains(Frontend.protocolFeaturesBit) { try connection.tell(.setProtocolFeatures(usual)) }
    connection.acknowledges = usual.contains(.replyAck)
    try connection.tell(.setOwner)
    try connection.tell(.setFeatures(offeredFeatures.intersection([.version1, Frontend.protocolFeaturesBit]).word))
    return connection
  }

  /// A session whose queues run.
  func session(_ setup: Setup = Setup()) throws(Finding) -> Session {
    let session = try Session(self, setup)
    try session.start()
    return session
  }

  /// A request on a connection of its own, which ends with it: many back-ends serve one front-end at a time.
  func oneRequest(_ setup: Setup) throws(Finding) {
    let session = try session(setup)
    try session.roundTrip()
    session.frontend.close()
  }

  /// Ends all connections of the check.
  func closeAll() {
    for frontend in frontends { frontend.close() }
    for socket in sockets { socket.shutdown() }
    frontends = []
    sockets = []
  }

  /// Learns what is offered.
  func survey() throws(Finding) {
    let frontend = try connect()
    let word = try judged { () throws(FrontendError) in try frontend.negotiate([.version1]) }
    offeredFeatures = frontend.offered
    offeredProtocol = frontend.offeredProtocolFeatures
    queueCount = frontend.queueCount
    _ = word
  }
}
