import DMA
import HostIO
import Virtio
import VirtioTestKit

/// One queue of a device with a literal ring for a driver, on the caller's thread: rounds as a worker runs them, and
/// nothing in between.
final class DeviceRig {
  private struct Request {
    /// Where the device-writable pieces are, and how long.
    var writable: [(address: UInt64, count: Int)]
    /// Set when the device gave the chain back.
    var used: UInt32?
  }

  let memory: GuestMemory
  let handler: any QueueHandler
  let features: Features
  let kind: RingKind
  private let index: Int
  private let ring: any LiteralRing
  private var queues: QueueSet
  private let heap: UInt64
  private var next: UInt64
  /// By our own number: the ring's IDs come again.
  private var requests: [Int: Request] = [:]
  private var number: [UInt32: Int] = [:]
  private var submitted = 0
  private let poller: Poller

  /// With `readingConfiguration` the driver reads all of the configuration before it starts, as drivers do.
  init(
    _ device: some VirtioDevice, queue index: Int = 0, features: Features? = nil, kind: RingKind = RingKind(),
    queueSize: UInt16 = 256,
    memoryBytes: Int = 64 << 20, resumingAt state: QueueState = .initial, readingConfiguration: Bool = true,
    space: ((GuestMemory) -> any DMASpace)? = nil
  ) throws {
    if readingConfiguration { _ = device.configuration(device.configurationSize) }
    var negotiated = (features ?? device.features).subtracting([.eventIndex, .inOrder, .notificationData])
    if !kind.packed { negotiated.remove(.ringPacked) }
    self.features = negotiated
    self.kind = kind
    self.index = index
    memory = try GuestMemory(byteCount: memoryBytes)
    handler = try device.makeHandler(for: index..<index + 1, features: negotiated)
    let (layout, end) = literalLayout(size: queueSize, packed: kind.packed, at: 0x1000)
    ring = makeLiteralRing(layout, features: negotiated, startingAt: state.available, in: LiteralMemory(memory))
    queues = QueueSet(index..<index + 1)
    queues.insert(
      try Virtqueue(
        index: index, layout: layout, features: negotiated, in: space?(memory) ?? PhysicalSpace(memory),
        resumingAt: state))
    heap = end
    next = end
    poller = try Poller()
    for one in handler.watched {
      try poller.add(one.descriptor, token: one.token, for: one.reportsChanges ? [.readable, .edge] : .readable)
    }
  }

  // MARK: Guest memory

  func write(_ bytes: [UInt8], at address: UInt64) { memory.write(bytes, at: GuestAddress(address)) }
  func read(_ count: Int, at address: UInt64) -> [UInt8] { memory.bytes(count, at: GuestAddress(address)) }

  /// `count` bytes of guest memory, at an address that is `skew` above a multiple of 4096.
  func allocate(_ count: Int, skew: UInt64 = 0) -> UInt64 {
    let address = next + skew
    next = (address + UInt64(count) + 4095) / 4096 * 4096
    precondition(next <= memory.byteCount, "the test's memory is used up")
    return address
  }

  /// Forgets all that was allocated, once nothing is with the device.
  func forget() {
    precondition(requests.isEmpty)
    next = heap
  }

  // MARK: Requests

  /// Makes a chain available: device-readable pieces with contents, then device-writable pieces of these sizes, filled
  /// with 0xEE. `skew` misaligns every piece. Returns a number for ``take(_:)``.
  @discardableResult
  func submit(readable: [[UInt8]], writable: [Int], skew: UInt64 = 0) -> Int {
    var pieces: [LiteralDescriptor] = []
    for bytes in readable {
      let address = allocate(bytes.count, skew: skew)
      write(bytes, at: address)
      pieces.append(LiteralDescriptor(DMAAddress(address), UInt32(bytes.count)))
    }
    var places: [(address: UInt64, count: Int)] = []
    for count in writable {
      let address = allocate(count, skew: skew)
      write([UInt8](repeating: 0xEE, count: count), at: address)
      pieces.append(LiteralDescriptor(DMAAddress(address), UInt32(count), writable: true))
      places.append((address, count))
    }
    return submit(pieces, places)
  }

  /// Makes descriptors available as they are.
  @discardableResult
  func submit(_ pieces: [LiteralDescriptor], _ places: [(address: UInt64, count: Int)] = []) -> Int {
    let table = kind.indirect ? DMAAddress(allocate(16 * pieces.count)) : nil
    let id = ring.post(pieces, table: table)
    ring.publish()
    submitted += 1
    number[UInt32(id)] = submitted
    requests[submitted] = Request(writable: places, used: nil)
    return submitted
  }

  /// Descriptors that no chain occupies.
  var free: Int { ring.free }

  // MARK: The device's turn

  /// Rounds as a worker runs them, until nothing is available. Does not wait for what is in flight.
  func kick() throws(QueueError) { try rounds(nil) }

  private func rounds(_ token: UInt64?) throws(QueueError) {
    var token = token
    var more = true
    while more {
      do throws(QueueError) {
        try queues[index].beginRound()
        if let ready = token { try handler.ready(ready, in: &queues) }
        token = nil
        queues[index].disarmKick()
        try handler.available(index, in: &queues)
      } catch {
        queues[index].retire()
        queues[index].endRound()
        reap()
        throw error
      }
      _ = queues[index].takeCall()
      more = queues[index].armKick()
      queues[index].endRound()
    }
    reap()
  }

  /// Kicks, and serves completions until everything submitted has come back.
  func run() throws {
    try kick()
    var ready = ReadySet()
    while inFlight > 0 {
      guard try poller.wait(into: &ready, timeout: .seconds(20)) > 0 else { throw RigError.nothingHappens }
      for i in ready.indices { try rounds(ready.token(i)) }
    }
  }

  /// Serves what is ready now, and waits for nothing.
  func serveReady() throws {
    var ready = ReadySet()
    while try poller.wait(into: &ready, timeout: .zero) > 0 { for i in ready.indices { try rounds(ready.token(i)) } }
  }

  /// Chains that the device took and did not give back, as its queue counts them.
  var lent: Int { queues[index].inFlight }

  /// How far the queue has come.
  var state: QueueState? { queues.isRunning(index) ? queues[index].state : nil }

  /// Chains with the device.
  var inFlight: Int { requests.values.count { $0.used == nil } }

  /// Serves completions until the device holds no chain, though its queue broke.
  func settle() throws {
    var ready = ReadySet()
    while lent > 0 {
      guard try poller.wait(into: &ready, timeout: .seconds(20)) > 0 else { throw RigError.nothingHappens }
      for i in ready.indices { try handler.ready(ready.token(i), in: &queues) }
    }
  }

  /// Stops the queue as a worker does.
  func finish() throws {
    try queues[index].beginRound()
    handler.stop(index, .finish, in: &queues)
    try settle()
    _ = queues[index].takeCall()
    queues[index].endRound()
    reap()
  }

  private func reap() {
    for used in ring.takeUsed() {
      guard let n = number.removeValue(forKey: used.id), requests[n]!.used == nil else {
        preconditionFailure("used, but not available")
      }
      requests[n]!.used = used.length
    }
  }

  /// What came back for a chain: the used length and all device-writable bytes; nil while it is with the device.
  func take(_ n: Int) -> (used: UInt32, bytes: [UInt8])? {
    guard let request = requests[n], let used = request.used else { return nil }
    requests[n] = nil
    return (used, request.writable.flatMap { read($0.count, at: $0.address) })
  }

  /// One request from start to end.
  func perform(readable: [[UInt8]], writable: [Int], skew: UInt64 = 0) throws -> (used: UInt32, bytes: [UInt8]) {
    let n = submit(readable: readable, writable: writable, skew: skew)
    try run()
    guard let result = take(n) else { throw RigError.nothingHappens }
    if requests.isEmpty { forget() }
    return result
  }
}

enum RigError: Error { case nothingHappens }
