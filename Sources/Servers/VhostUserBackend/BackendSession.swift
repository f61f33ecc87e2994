internal import DMA
internal import HostIO
internal import Logging
internal import SocketMessages
internal import VhostUser
internal import Virtio
internal import VirtioServing

/// One connection: the front-end's requests in, their effects on memory, translations and queues, and the answers out.
///
/// One control thread owns it. It may wait for queue threads; they never wait for it. It does not wait for the
/// front-end, so that a translation can be asked for on one socket while its answer arrives on the other, and neither
/// has to be read for that.
final class BackendSession {
  /// Why a connection ended.
  enum Ending: Error {
    /// The front-end closed it.
    case closed
    /// The server was stopped.
    case told
    /// For the log: one sentence.
    case failed(String)
  }

  let device: any VirtioDevice
  let options: BackendOptions
  let log: Logger
  let runner: DeviceRunner
  let table = MemoryTable()
  let channel: BackendChannel
  let vringErrors: VringErrorNotifier
  let announcer: ConfigurationAnnouncer
  let iotlb: IOTLBSpace
  let physical: PhysicalSpace
  let report: BackendReport
  let poller: Poller
  private let socket: UnixSocket
  private var stream: MessageStream<MessageHeader>
  private var answers: AnswerQueue
  private var watched: Readiness = .readable
  var channelStream: MessageStream<MessageHeader>?
  var watchesChannelRoom = false
  /// Runs while the channel is lost and the connection is not known to be.
  var channelTimer: TimerFD?

  /// SET_OWNER came: the next one begins another device's life.
  var hasOwner = false
  /// SET_FEATURES was accepted since the session began or the device was reset. No ring runs before: what its addresses
  /// mean is not known.
  var hasFeatures = false { didSet { hadFeatures = hadFeatures || hasFeatures } }
  /// Whether it ever came.
  private var hadFeatures = false
  var negotiated = NegotiatedFeatures(Features(word: 0))
  var featureWord: UInt64 = 0
  var protocolFeatures: ProtocolFeatures = []
  var vrings: [Vring]
  var status: UInt64 = 0
  var dirtyLog: DirtyLog?
  let logEvent = DirtyLogNotifier()
  var inflight: InflightRegion?
  var transfer: StateTransfer?
  var isTransferWatched = false
  /// How saving the state ended, until the front-end asks.
  var savedResult: Bool?
  /// The request whose answer is pending, and the messages behind it.
  var owed: OwedAnswer?
  var owedHeader: MessageHeader?
  var owedSince = ContinuousClock.now
  var deferred: [DeferredMessage] = []
  /// The connection has ended: no ring starts any more.
  var isOver = false
  /// Signalled when a stopping ring has stopped.
  let stopped: EventFD
  var pollTimer: TimerFD?
  /// Whether the guest's memory seems not to be shared.
  var sharing: SharingAdvice
  /// Why the request being served leaves a ring that does not run: the answer to it is no, if it asks for one.
  var refusal: ProtocolError?
  /// The walks that waited for the update in the current message; woken when it is answered.
  var arrived: [any TranslationWaiter] = []
  /// ``BackendReport`` is not up to date.
  private var hasNews = true
  /// Whether idle processors are kept from stopping.
  private(set) var idle: IdleLatency
  /// IOTLB messages so far.
  private var translations: UInt64 = 0

  enum Token {
    static let stop: UInt64 = 0
    static let socket: UInt64 = 1
    static let backlog: UInt64 = 2
    static let channel: UInt64 = 3
    static let pollTimer: UInt64 = 4
    static let transfer: UInt64 = 5
    static let checkTimer: UInt64 = 6
    static let stopped: UInt64 = 7
    static let kicked: UInt64 = 8
    static let kickTimer: UInt64 = 9
    static let channelTimer: UInt64 = 10
  }

  init(
    _ device: any VirtioDevice, on socket: UnixSocket, options: BackendOptions, report: BackendReport, log: Logger
  ) throws(HostError) {
    self.device = device
    self.options = options
    self.log = log
    self.socket = socket
    self.report = report
    stream = MessageStream(socket)
    idle = IdleLatency(options.idleLatency)
    answers = AnswerQueue(socket)
    poller = try Poller()
    stopped = try EventFD()
    let channel = try BackendChannel()
    self.channel = channel
    sharing = try SharingAdvice()
    vringErrors = VringErrorNotifier(channel: channel, kicked: sharing.kicked)
    announcer = ConfigurationAnnouncer(channel: channel)
    runner = DeviceRunner(device, name: options.name, patience: options.stopPatience, events: vringErrors, log: log)
    let faults = FaultLog(report, log)
    iotlb = IOTLBSpace(
      table, maxNodes: options.maxTranslationNodes, servesOneChain: options.translations == .once,
      ask: { message, question in
        if let question { channel.gather(message, question) } else { channel.send(.iotlb(message), awaiting: nil) }
      }, asked: { channel.post() }, faulted: { faults.refused($0, .platform) })
    physical = PhysicalSpace(table.memory) { faults.refused($0, .physical) }
    vrings = device.maxQueueSizes.map { _ in Vring() }
  }

  /// Serves until the front-end closes, breaks the protocol beyond repair, or `stop` is signalled.
  ///
  /// - Returns: why it ended, as a clause.
  func run(stop: EventFD) throws(HostError) -> String {
    try poller.add(stop, token: Token.stop)
    try poller.add(socket.rawValue, token: Token.socket)
    try poller.add(channel.backlog, token: Token.backlog)
    try poller.add(stopped, token: Token.stopped)
    try poller.add(sharing.kicked, token: Token.kicked)
    report.sessionBegan(self)
    let ending: Ending
    do throws(HostError) {
      ending = try serve(until: stop)
    } catch {
      end()
      throw error
    }
    end()
    switch ending {
    case .told: return "this back-end was told to stop"
    case .failed: return "this back-end closed the connection"
    case .closed where !hadFeatures: return "it closed the connection before it had chosen features"
    case .closed:
      // The queues stand still: this is all.
      let requests = runner.counts.reduce(0) { $0 + $1.requests }
      return "it closed the connection, after \(counted(requests, "request"))"
    }
  }

  private func serve(until stop: EventFD) throws(HostError) -> Ending {
    var ready = ReadySet()
    while true {
      try poller.wait(into: &ready, timeout: idle.patience)
      do throws(Ending) {
        for i in ready.indices { try serve(ready.token(i), ready.readiness(i), stop) }
        watchSocket()
        if idle.look() { hasNews = true }
        if hasNews {
          hasNews = false
          report.refresh(self)
        }
      } catch {
        guard case .failed(let sentence) = error else { return error }
        log.warning("connection closed: \(sentence)")
        report.sessionFailed(sentence)
        return error
      }
    }
  }

  private func serve(_ token: UInt64, _ readiness: Readiness, _ stop: EventFD) throws(Ending) {
    if token != Token.socket, token != Token.channel { hasNews = true }
    switch token {
    case Token.stop: throw .told
    case Token.socket:
      if readiness.contains(.writable) { try flushAnswers() }
      if !isListening {
        if !readiness.isDisjoint(with: [.hangup, .failed]) { throw .closed }
        return
      }
      // Not all there is: a front-end that never pauses must not keep us from the others.
      try serveSocket(stop, most: 64)
    case Token.backlog:
      _ = try? channel.backlog.drain()
      flushChannel()
    case Token.channel:
      if readiness.contains(.writable) { flushChannel() }
      if !readiness.isDisjoint(with: [.readable, .hangup, .failed, .peerClosed]) { try serveChannel(stop) }
    case Token.pollTimer:
      _ = try? pollTimer?.drain()
      for index in vrings.indices where vrings[index].isPolled { runner.kick(index) }
    case Token.transfer:
      advanceTransfer()
      try answerCheck(stop, isLate: false)
    case Token.checkTimer: try answerCheck(stop, isLate: true)
    case Token.stopped:
      _ = try? stopped.drain()
      try settleStops(stop)
    case Token.channelTimer: giveUpChannel()
    case Token.kicked: heardKick()
    case Token.kickTimer: lookForRequests()
    default: break
    }
  }

  // MARK: The main socket

  func serveSocket(_ stop: EventFD, most: Int = .max) throws(Ending) {
    var left = most
    while left > 0, isListening, let message = try nextMessage() {
      let isAwaited = message.header.needsReply
      try handle(message, stop)
      left -= 1
      // A front-end that waits for our answer has sent nothing since. If it has, the poller says so.
      if isAwaited, most < .max { return }
      if left % 64 == 0, (try? stop.wait(timeout: .zero)) == true { throw .told }
    }
  }

  /// Requests are read unless too many wait already; room for answers is watched if some wait.
  private func watchSocket() {
    var wanted: Readiness = isListening ? .readable : []
    if !answers.isEmpty { wanted.insert(.writable) }
    guard wanted != watched else { return }
    try? poller.modify(socket.rawValue, token: Token.socket, for: wanted)
    watched = wanted
  }

  private func flushAnswers() throws(Ending) {
    try rethrowing(answers.flush(), saying: { Ending.failed("answers could not be sent: \($0)") })
  }

  /// Whether this host had no descriptor left for one that the front-end sent.
  private(set) var ranShort = false

  private func nextMessage() throws(Ending) -> IncomingMessage<MessageHeader>? {
    try rethrowing(
      stream.next(),
      as: { (ending: StreamEnding) -> Ending in
        switch ending {
        case .closed: return .closed
        case .cut: return .failed("the front-end closed it in the middle of a message")
        case .host(let error):
          ranShort = error.isShortage
          return .failed("\(error)")
        case .peer(let error): return .failed("\(error)")
        }
      })
  }

  func handle(_ message: consuming IncomingMessage<MessageHeader>, _ stop: EventFD) throws(Ending) {
    let header = message.header
    if header.request == FrontendRequest.Kind.iotlb.rawValue {
      try awaitQuickStops(stop)
      idle.message()
      // They come by the thousand, and one says nothing new: what many say together does.
      translations &+= 1
      if translations % 64 == 0 { hasNews = true }
    } else {
      hasNews = true
    }
    if mustWait(header) {
      deferred.append(DeferredMessage(message))
      return
    }
    defer {
      if !arrived.isEmpty {
        iotlb.wake(arrived)
        arrived = []
      }
    }
    let wasOwed = owed != nil
    var outgoing = FileDescriptorList()
    refusal = nil
    let outcome: Result<BackendReply?, ProtocolError>
    do throws(ProtocolError) {
      guard !header.isReply else {
        throw ProtocolError(FrontendRequest.name(of: header.request), "it came as an answer, and nothing was asked")
      }
      let request = try FrontendRequest(request: header.request, payload: message.payload)
      guard request.descriptorCounts.contains(message.descriptors.count) else {
        throw ProtocolError(request.name, "\(message.descriptors.count) descriptors came with it")
      }
      outcome = .success(try serve(request, &message.descriptors, &outgoing))
    } catch {
      outcome = .failure(error)
    }
    if owed != nil, !wasOwed {
      owedHeader = header
      owedSince = ContinuousClock.now
    } else {
      try answer(header, outcome, outgoing, stop)
    }
  }

  /// Answers a request that is done, if it has an answer or asks for one.
  func answer(
    _ header: MessageHeader, _ outcome: Result<BackendReply?, ProtocolError>, _ outgoing: borrowing FileDescriptorList,
    _ stop: EventFD
  ) throws(Ending) {
    var answer: BackendReply?
    switch outcome {
    case .success(let own):
      answer = own
      if answer == nil, header.needsReply, protocolFeatures.contains(.replyAck) {
        answer = refusal == nil ? .success : .failure
      }
    case .failure(let error):
      answer = failure(of: header)
      guard answer != nil else { throw .failed("\(error)") }
      log.warning("request refused: \(error)")
    }
    guard let answer else { return }
    // A front-end that has the answer may ask at once what has changed. Translations are many, and change nothing
    // there.
    if header.request != FrontendRequest.Kind.iotlb.rawValue { report.refresh(self) }
    try send(answer, to: header.request, outgoing, stop)
  }

  func send(
    _ answer: BackendReply, to request: UInt32, _ descriptors: borrowing FileDescriptorList, _ stop: EventFD
  ) throws(Ending) {
    try rethrowing(
      answers.send(answer.encoded(to: request), descriptors, stop),
      saying: { Ending.failed("the answer to \(FrontendRequest.name(of: request)) could not be sent: \($0)") })
  }

  /// How to say no to a request, or nil when the protocol has no way: then the connection has to end.
  private func failure(of header: MessageHeader) -> BackendReply? {
    guard !header.isReply else { return nil }
    switch FrontendRequest.Kind(rawValue: header.request) {
    case .getConfiguration: return .configuration(nil)
    case .getInflightDescriptor:
      return .inflight(InflightDescription(mmapSize: 0, mmapOffset: 0, queueCount: 0, queueSize: 0))
    case .setDeviceStateDescriptor: return .value(1 | DeviceStateTransfer.noDescriptor)
    case .setLogBase where protocolFeatures.contains(.logSharedMemory): return .failure
    case .iotlb, .checkDeviceState: return .failure
    case .getFeatures, .getProtocolFeatures, .getQueueCount, .getVringBase, .getMaxMemorySlots, .getStatus: return nil
    default: return header.needsReply && protocolFeatures.contains(.replyAck) ? .failure : nil
    }
  }

  // MARK: The end

  private func end() {
    idle.quiet()
    for index in vrings.indices { runner.setCall(index, nil as EventFD?) }
    // Not a reset: the next front-end may go on with the rings where they are.
    stopForGood()
    table.memory.setDirtyLog(nil)
    settle(replaceChannel(nil))
    logEvent.set(nil)
    dropTransfer()
    iotlb.flush()
    // Even if another process holds the socket, the front-end sees the end now.
    socket.shutdown()
    report.sessionEnded(self)
  }
}
