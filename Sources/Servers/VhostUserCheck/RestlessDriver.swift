internal import DMA
internal import Examination
internal import HostIO
internal import Synchronization
internal import VhostUserFrontend
internal import Virtio

/// A driver of a split ring that makes every buffer available again the moment it was used: the ring is full at all
/// times.
///
/// Where there are indirect tables every request is as long as a chain may be: that costs the device far more than the
/// driver. One in the ring is the usual request, which may take the device some time. It uses its own view of the
/// ring's memory; the state of the session's queue is void from then on.
final class RestlessDriver {
  private let session: Session
  private let driver: RingMemory
  private let device: RingMemory
  private let size: UInt16
  private let chains: UInt16
  private var available: UInt16 = 0
  private var seen: UInt16 = 0
  /// Requests served so far.
  private(set) var served: UInt64 = 0
  /// Of these, usual ones.
  private(set) var usual: UInt64 = 0
  private let usualHead: UInt16

  /// What the session has to have.
  static func setup(_ context: CheckContext, _ setup: Setup) -> Setup {
    var setup = setup
    setup.size = context.device.longRing
    if context.device.quickRequest != nil {
      setup.features.formUnion(context.offeredFeatures.intersection(.indirectDescriptors))
    }
    return setup
  }

  /// Fills the ring of a session that was just started with requests.
  init(_ session: Session) throws(Finding) {
    let layout = session.ring.layout
    let bytes = layout.byteCounts(packed: false, eventIndex: false)
    let driver = try session.space.cells(layout.driverArea, count: bytes.driver)
    let device = try session.space.cells(layout.deviceArea, count: bytes.device)
    self.session = session
    self.driver = driver
    self.device = device
    size = layout.size
    let isIndirect = session.frontend.features.contains(.indirectDescriptors)
    let request = session.context.device.quickRequest?(isIndirect ? 256 : 0) ?? session.context.device.request
    for (i, piece) in request.readable.enumerated() { session.space.write(piece, to: session.pieces[i]) }
    // Every chain has the same buffers, and is still one of its own: a head is available again only when it was used.
    func chain(_ request: DeviceProbe.Request, from first: UInt16) -> [UInt8] {
      let counts = request.readable.map(\.count) + request.writable
      var table: [UInt8] = []
      for (i, count) in counts.enumerated() {
        var flags: RawDescriptor.Flags = i < request.readable.count ? [] : .write
        if i + 1 < counts.count { flags.insert(.next) }
        // Of a long request all pieces but the last one are in the same place.
        let piece = i + 1 == counts.count ? session.pieces.count - 1 : min(i, request.readable.count)
        table += RawDescriptor(session.pieces[piece].rawValue, UInt32(count), flags, next: first + UInt16(i + 1)).split
      }
      return table
    }
    let length: UInt16
    var table: [UInt8] = []
    // The usual one has buffers of its own, and is the last in the ring.
    let other = session.context.device.request
    let quick = session.pieces
    session.pieces = []
    for _ in 0..<other.pieces { session.pieces.append(try session.space.allocate()) }
    try session.fill()
    let tail = UInt16(other.pieces)
    let last = chain(other, from: size - tail)
    session.pieces = quick
    if isIndirect {
      length = 1
      let long = chain(request, from: 0)
      let room = try session.space.allocate((long.count + 4095) / 4096)
      session.space.write(long, to: room)
      for _ in 0..<size - tail { table += RawDescriptor(room.rawValue, UInt32(long.count), .indirect).split }
    } else {
      length = UInt16(request.pieces)
      for i in 0..<(size - tail) / length { table += chain(request, from: i * length) }
    }
    let quickChains = (size - tail) / length
    chains = quickChains + 1
    usualHead = size - tail
    session.space.write(table, to: layout.descriptorArea)
    session.space.write(last, to: DMAAddress(layout.descriptorArea.rawValue + 16 * UInt64(usualHead)))
    offer(usualHead)
    for i in 0..<quickChains { offer(i * length) }
    self.driver.storeRelease16(available, at: 2)
    session.ring.events?.kick()
  }

  private func offer(_ head: UInt16) {
    driver.store16(head, at: 4 + 2 * Int(available % size))
    available &+= 1
  }

  /// Makes available again what was used since the last time.
  func turn() throws(Finding) {
    let used = device.loadAcquire16(at: 2)
    guard used != seen else { return wake() }
    guard used &- seen <= chains else {
      throw .broken("\(used &- seen) requests were used, and \(chains) were available")
    }
    while seen != used {
      let id = device.load32(at: 4 + 8 * Int(seen % size))
      guard id < UInt32(size) else { throw .broken("the device used buffer \(id), and the ring has \(size)") }
      offer(UInt16(id))
      if id == UInt32(usualHead) { usual += 1 }
      seen &+= 1
      served += 1
    }
    driver.storeRelease16(available, at: 2)
    wake()
  }

  /// Kicks if the device wants to be.
  private func wake() { if device.load16(at: 0) & 1 == 0 { session.ring.events?.kick() } }

  /// What another thread's messages came to.
  private final class Outcome: Sendable {
    let value = Mutex<Result<Duration, FrontendError>?>(nil)
  }

  /// Goes on without a pause while `messages` are sent from another thread. Returns how long they took.
  func goOn(_ messages: @escaping @Sendable (Frontend) throws(FrontendError) -> Void) throws(Finding) -> Duration {
    let outcome = Outcome()
    let frontend = session.frontend
    let thread: WorkerThread
    do throws(HostError) {
      thread = try WorkerThread(name: "messages") {
        // The ring is busy by then.
        pause(.milliseconds(20))
        let start = ContinuousClock.now
        do throws(FrontendError) {
          try messages(frontend)
          outcome.value.withLock { $0 = .success(ContinuousClock.now - start) }
        } catch {
          outcome.value.withLock { $0 = .failure(error) }
        }
      }
    } catch {
      throw .notChecked("\(error)")
    }
    defer { thread.join() }
    while true {
      for _ in 0..<64 { try turn() }
      if let result = outcome.value.withLock({ $0 }) {
        switch result {
        case .success(let time): return time
        case .failure(let error): throw Finding(error)
        }
      }
    }
  }

  /// Goes on for the quiet time, and throws if anything is used meanwhile.
  func expectNothing(_ otherwise: String) throws(Finding) {
    try turn()
    let before = served
    let end = ContinuousClock.now + session.context.quiet
    while ContinuousClock.now < end { try turn() }
    try expect(served == before, otherwise)
  }

  /// Goes on until one more usual request was served.
  func expectMore() throws(Finding) {
    let (before, quick) = (usual, served)
    let end = ContinuousClock.now + session.context.patience
    while usual == before {
      guard ContinuousClock.now < end else {
        if served == quick { throw session.nothingCame() }
        throw .wedged(
          "the driver made \(served - quick) other requests meanwhile, and one was not used within \(seconds(session.context.patience))"
        )
      }
      try turn()
    }
  }
}
