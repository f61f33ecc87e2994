internal import DMA
internal import HostIO
internal import Synchronization
internal import VhostUser
internal import Virtio

/// A driver of a split ring that makes every buffer available again the moment it was used: the ring is full at all times.
///
/// It uses its own view of the ring's memory; what the session's queue knows is void from then on.
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
    let request = session.bench.device.quickRequest
    for (i, piece) in request.readable.enumerated() { session.space.write(piece, to: session.pieces[i]) }
    let counts = request.readable.map(\.count) + request.writable
    chains = size / UInt16(counts.count)
    // Every chain has the same buffers, and is still one of its own: a head is available again only when it was used.
    var table: [UInt8] = []
    for chain in 0..<chains {
      for (i, count) in counts.enumerated() {
        var flags: BareDescriptor.Flags = i < request.readable.count ? [] : .write
        if i + 1 < counts.count { flags.insert(.next) }
        let next = chain * UInt16(counts.count) + UInt16(i + 1)
        table += BareDescriptor(session.pieces[i].rawValue, UInt32(count), flags, next: next).split
      }
    }
    session.space.write(table, to: layout.descriptorArea)
    for chain in 0..<chains { offer(chain * UInt16(counts.count)) }
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
    guard used &- seen <= chains else { throw .broken("\(used &- seen) requests were used, and \(chains) were available") }
    while seen != used {
      let id = device.load32(at: 4 + 8 * Int(seen % size))
      guard id < UInt32(size) else { throw .broken("the device used buffer \(id), and the ring has \(size)") }
      offer(UInt16(id))
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
    let end = ContinuousClock.now + session.bench.quiet
    while ContinuousClock.now < end { try turn() }
    try expect(served == before, otherwise)
  }

  /// Goes on until a request more was served.
  func expectMore() throws(Finding) {
    let before = served
    let end = ContinuousClock.now + session.bench.patience
    while served == before {
      guard ContinuousClock.now < end else { throw session.nothingCame() }
      try turn()
    }
  }
}
