internal import DMA
internal import Examination
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio
internal import VirtioDrivers

/// How a session is to be.
struct Setup {
  /// Features beyond VERSION_1.
  var features: Features = []
  var protocolFeatures = Frontend.usualProtocolFeatures
  /// Behind an IOMMU: with ACCESS_PLATFORM.
  var translated = false
  /// Descriptors of each queue.
  var size: UInt16 = 64
  /// Ring areas start in the middle of a page and no two of their pages are neighbours. Needs `translated`.
  var scattered = false
  /// Bytes before the memory in its file.
  var fileOffset: UInt64 = 0
  /// No kick: the back-end has to look by itself.
  var polled = false
  /// Device addresses equal guest addresses, as a pass-through IOMMU has it. Needs `translated`.
  var identity = false
  /// Regions of a megabyte, each of which ends where the one before it starts; they are sent in that order.
  var below = 0
  /// SET_FEATURES is not sent, and only what has to come before it.
  var isUnaccepted = false
  /// The first entry of the first indirect table is on another page than the rest of it. Needs `translated`.
  var scatteredTables = false

  static var platform: Setup { Setup(translated: true) }
}

/// One connection with memory and queues, on the probe's queue of which requests are made. One thread uses it.
final class Session {
  let context: CheckContext
  let setup: Setup
  private(set) var frontend: Frontend
  let space: DeviceSpace
  /// Where the probe's pieces are, readable ones first: each on a page of its own.
  var pieces: [DMAAddress] = []
  private let request: DeviceProbe.Request
  private(set) var rings: [ProbeRing] = []

  /// Connects, negotiates, shares memory and lays out the queues; ``start()`` is up to the check.
  init(_ context: CheckContext, _ setup: Setup = Setup()) throws(Finding) {
    self.context = context
    self.setup = setup
    request = context.device.request
    let space = try DeviceSpace(
      translated: setup.translated, identity: setup.identity, offset: setup.fileOffset, below: setup.below)
    self.space = space
    let frontend = try context.connect(memory: space.memory, mappings: space.mappings)
    self.frontend = frontend
    try introduce()
    for _ in request.readable.indices { pieces.append(try space.allocate()) }
    for _ in request.writable.indices { pieces.append(try space.allocate()) }
    try layOut()
  }

  /// Negotiates and shares the memory.
  private func introduce(anew: Bool = false) throws(Finding) {
    let (frontend, setup) = (frontend, setup)
    if setup.isUnaccepted {
      let offered = context.offeredProtocol
      let known = context.offeredFeatures.contains(Frontend.protocolFeaturesBit)
      return try judged { () throws(FrontendError) in
        // No STATUS: nothing but the features is missing.
        if known {
          try frontend.send(.setProtocolFeatures(offered.intersection([.multiqueue, .replyAck, .configuration])))
        }
        try frontend.send(.setOwner)
        try frontend.share()
      }
    }
    var features = setup.features.union(.version1)
    if setup.translated { features.insert(.accessPlatform) }
    let wanted = features
    try judged { () throws(FrontendError) in
      try frontend.negotiate(wanted, protocolFeatures: setup.protocolFeatures, anew: anew)
      if frontend.protocolFeatures.contains(.status) { try frontend.setStatus([.acknowledge, .driver, .featuresOK]) }
      try frontend.share()
      // QEMU's answers cover a page each.
      frontend.setUpdateGranule(DeviceSpace.page)
    }
  }

  /// Begins the device's life anew on the same connection, as QEMU does when a disk is plugged in where one was pulled
  /// out.
  func beginAnew() throws(Finding) { try introduce(anew: true) }

  /// Drops the connection as a machine monitor does that dies, and comes back with the same memory; queues are to be
  /// resumed.
  func reconnect(_ inflight: FrontendInflight? = nil) throws(Finding) {
    frontend.close()
    frontend = try context.connect(memory: space.memory, mappings: space.mappings)
    try introduce()
    guard let inflight else { return }
    let frontend = frontend
    try judged { () throws(FrontendError) in try frontend.install(inflight) }
  }

  /// The ring that requests go to.
  var ring: ProbeRing { rings[context.device.queue] }
  /// The page that the device's answer lands in.
  var landing: DMAAddress {
    get { pieces[request.readable.count] }
    set { pieces[request.readable.count] = newValue }
  }
  /// The first page the device reads or, where it reads nothing, writes.
  var first: DMAAddress { pieces[0] }
  var landingCount: Int { request.writable.first ?? 0 }
  /// What shows where the device goes: where its answer lands or, of a device that does not write, what it reads first.
  var probed: DMAAddress { context.device.writes ? landing : first }
  /// The page of ``probed``.
  var probedPage: DMAAddress { DMAAddress(probed.rawValue & ~(DeviceSpace.page - 1)) }

  /// Puts the probe's pieces elsewhere, a page each from `place` on: which of them a device really reads is not
  /// specified.
  func put(at place: DMAAddress) {
    for i in pieces.indices { pieces[i] = DMAAddress(place.rawValue + UInt64(i) * DeviceSpace.page) }
  }

  /// Gives every queue fresh memory, at addresses that were not in use before. Nothing is started.
  func layOut() throws(Finding) {
    rings = []
    let tables = setup.features.contains(.indirectDescriptors)
    for index in 0..<context.device.queueCount {
      rings.append(
        try ProbeRing(
          index, space, setup.size, frontend.features, scattered: setup.scattered, tables: tables,
          scatteredTables: setup.scatteredTables))
    }
  }

  /// Clears the rings and starts all queues from their beginning.
  func start() throws(Finding) {
    for ring in rings { try ring.renew(space, frontend.features) }
    try run { _ in .initial }
  }

  /// Goes on with the rings as they are. `kicked`: their kick descriptors are readable before they are passed.
  func resume(at states: [QueueState], kicked: Bool = false) throws(Finding) { try run(kicked: kicked) { states[$0] } }

  private func run(kicked: Bool = false, _ state: (Int) -> QueueState) throws(Finding) {
    for (index, ring) in rings.enumerated() {
      let place = state(index)
      let polled = setup.polled
      ring.events = try judged { () throws(FrontendError) in
        try frontend.startQueue(index, layout: ring.layout, resumingAt: place, polled: polled, kicked: kicked)
      }
    }
    if frontend.protocolFeatures.contains(.status) {
      try judged { () throws(FrontendError) in try frontend.setStatus([.acknowledge, .driver, .featuresOK, .driverOK]) }
    }
  }

  /// Stops all queues and says where each stopped.
  ///
  /// - Parameter meanwhile: called when the probe's queue has been told to stop, and has not answered yet.
  func stop(_ meanwhile: () -> Void = {}) throws(Finding) -> [QueueState] {
    var states: [QueueState] = []
    for index in rings.indices {
      states.append(
        try judged { () throws(FrontendError) in
          try frontend.stopQueue(index) { if index == context.device.queue { meanwhile() } }
        })
    }
    return states
  }

  /// Stops all queues and starts them on cleared rings.
  func startOver() throws(Finding) {
    _ = try stop()
    try start()
  }

  // MARK: Requests

  /// Makes a request available and kicks.
  func submit(indirect: Bool = false) throws(Finding) {
    try add(indirect: indirect)
    publish()
  }

  /// Writes a request's bytes where its pieces are, and blanks the room for its answer.
  func fill() throws(Finding) {
    for (i, bytes) in request.readable.enumerated() { space.write(bytes, to: pieces[i]) }
    for (i, count) in request.writable.enumerated() {
      space.write([UInt8](repeating: DeviceProbe.blank, count: count), to: pieces[request.readable.count + i])
    }
  }

  /// Puts a request into the ring, not yet to be seen. Returns its head.
  @discardableResult
  func add(indirect: Bool = false) throws(Finding) -> UInt16 {
    try fill()
    let buffers = pieces.indices.map { DriverBuffer(pieces[$0], count: UInt32(pieceCount($0))) }
    let readable = Array(buffers.prefix(request.readable.count))
    let writable = Array(buffers.dropFirst(request.readable.count))
    return try rethrowing(
      ring.queue.add(readable: readable.span, writable: writable.span, indirect: indirect),
      saying: { Finding.notChecked("the driver's ring: \($0)") })
  }

  func publish() { if ring.queue.publish() { ring.events?.kick() } }

  /// The next buffer that is used, or nil when the time is over. Throws what the back-end did wrong meanwhile.
  func used(within limit: Duration? = nil) throws(Finding) -> UsedBuffer? {
    let end = ContinuousClock.now + (limit ?? context.patience)
    while true {
      do throws(DriverQueueError) {
        if let used = try ring.queue.reap() { return used }
      } catch {
        throw .broken(Self.words(error))
      }
      if ring.queue.armCall() { continue }
      let now = ContinuousClock.now
      guard now < end else { return nil }
      if let failure = frontend.failure {
        if case .violation = failure { throw Finding(failure) }
        throw .broken("the connection ended while a request was under way")
      }
      // Another check covers a call that never comes.
      _ = ring.events?.waitForCall(timeout: min(end - now, .milliseconds(20)))
    }
  }

  /// What the device did wrong in the used ring.
  private static func words(_ error: DriverQueueError) -> String {
    switch error {
    case .usedIndex(let index, let expected):
      "the device moved the used index to \(index), and no more than \(expected) was made available"
    case .usedID(let id): "the device used buffer \(id), which it was not given, or used already"
    case .usedLength(let length, let room):
      "the device says that it wrote \(length) bytes into a buffer with room for \(room)"
    default: "the device broke its ring: \(error)"
    }
  }

  /// Waits until the used index, as it lies in memory, is `index`; the driver's queue takes no notice.
  func awaitUsedIndex(_ index: UInt16) throws(Finding) {
    let end = ContinuousClock.now + context.patience
    while ring.usedIndex(space) != index {
      guard ContinuousClock.now < end else { throw nothingCame() }
      pause(.milliseconds(1))
    }
  }

  /// Waits for the request under way and checks its answer.
  func finish() throws(Finding) {
    guard let used = try used() else { throw nothingCame() }
    if let fault = fault(used) { throw .broken(fault) }
  }

  /// Says of a request that it was not used in the time.
  func nothingCame() -> Finding {
    let refused = frontend.counts.refusals
    let misses =
      refused > 0 ? "; \(refused) translations that it asked for were refused, because nothing allows that access" : ""
    return .wedged("a request was not used within \(seconds(context.patience))\(misses)")
  }

  /// What is wrong with an answer, or nil.
  func fault(_ used: UsedBuffer) -> String? { fault(written: used.written) }

  /// As ``fault(_:)``, for an answer of so many bytes.
  func fault(written: UInt32) -> String? {
    let answers = request.writable.enumerated().map { i, count in
      space.bytes(pieces[request.readable.count + i], count: count)
    }
    let fault = context.device.fault(
      DeviceProbe.Answer(written: written, pieces: answers, reference: context.reference))
    if fault == nil, context.device.answersAreAlike, context.reference == nil { context.reference = answers[0] }
    return fault
  }

  /// One request from start to end.
  func roundTrip(indirect: Bool = false) throws(Finding) {
    try submit(indirect: indirect)
    try finish()
  }

  /// Several requests at once, so that heads, and what is said of them, differ.
  func batch(_ count: Int) throws(Finding) {
    for _ in 0..<count { try add() }
    publish()
    for _ in 0..<count { try finish() }
  }

  /// How many requests fit into a ring at once.
  var room: Int { Int(setup.size) / max(1, pieces.count) }

  /// Throws if a request is used within the quiet time.
  func expectNothing(_ otherwise: @autoclosure () -> String) throws(Finding) {
    guard try used(within: context.quiet) == nil else { throw .broken(otherwise()) }
  }

  // MARK: Translations

  /// Invalidates a device page at the back-end, or gives it a new translation.
  func invalidate(_ device: DMAAddress) throws(Finding) {
    try invalidate(device, DMAAddress(device.rawValue + DeviceSpace.page - 1))
  }

  func invalidate(_ first: DMAAddress, _ last: DMAAddress) throws(Finding) {
    try judged { () throws(FrontendError) in try frontend.invalidate(from: first, through: last) }
  }

  func translate(_ message: IOTLBMessage) throws(Finding) {
    try judged { () throws(FrontendError) in try frontend.sendTranslation(message) }
  }

  /// An UPDATE for one device page as it is mapped.
  func update(
    _ device: DMAAddress, _ permission: IOTLBMessage.Permission = [.read, .write], at guest: GuestAddress? = nil
  ) throws(Finding) -> IOTLBMessage {
    guard let address = space.memory.frontendAddress(of: guest ?? space.guest(device)) else {
      throw .notChecked("no such memory")
    }
    return IOTLBMessage(
      kind: .update, address: device.rawValue, size: DeviceSpace.page, frontendAddress: address.rawValue,
      permission: permission)
  }

  /// Misses on a device page so far.
  func misses(on device: DMAAddress) -> [IOTLBMessage] {
    let page = device.rawValue & ~(DeviceSpace.page - 1)
    return frontend.counts.missed.filter { $0.address & ~(DeviceSpace.page - 1) == page }
  }

  /// Waits until more than `count` translations were asked for on this page, as `otherwise` says if they are not.
  func awaitMiss(on device: DMAAddress, past count: Int = 0, _ otherwise: String) throws(Finding) {
    let end = ContinuousClock.now + context.patience
    while misses(on: device).count <= count {
      guard ContinuousClock.now < end else { throw .broken(otherwise) }
      pause(.milliseconds(1))
    }
  }

  /// GET_FEATURES is answered on this connection.
  func expectAnswer() throws(Finding) { _ = try judged { () throws(FrontendError) in try frontend.ask(.getFeatures) } }
}

func seconds(_ time: Duration) -> String {
  let (seconds, rest) = time.components
  return "\(Double(seconds) + (Double(rest) / 1e18 * 10).rounded() / 10) s"
}
