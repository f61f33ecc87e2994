import DMA
import HostIO
import Virtio

/// One device and one driver at work: posts chains, watches every byte the device was not given, and keeps what is
/// wrong.
final class ConformanceSession {
  /// Chains did not come back, or the driver's queue found the device to lie.
  struct RingIsUseless: Error {}
  private struct Posted {
    var pieces: [LiteralDescriptor]
    /// What came back: the used length.
    var used: Int?
  }

  let device: any VirtioDevice
  let rig: RingRig
  let faulting: FaultingSpace
  private(set) var harness: DeviceHarness
  private(set) var violations: [String] = []
  private var poller: Poller
  private var next: DMAAddress
  private var tables = 0
  private var posted: [Int: Posted] = [:]
  private var number: [UInt32: Int] = [:]
  private var submitted = 0
  /// The memory handed out for buffers, and the next two pages, as they were before the device could touch them.
  private var before: [UInt8] = []

  init(_ device: any VirtioDevice, as meeting: RingCase) throws {
    self.device = device
    // Room for a queue full of requests, and for one that is far too long.
    rig = try RingRig(meeting, dataBytes: 640 << 10, tableCapacity: 64)
    faulting = FaultingSpace(rig.space)
    next = rig.data
    harness = try Self.harness(device, meeting, faulting)
    poller = try Self.poller(harness)
    try harness.start(0, rig.layout)
  }

  private static func harness(
    _ device: any VirtioDevice, _ meeting: RingCase, _ space: any DMASpace
  ) throws -> DeviceHarness {
    try DeviceHarness(device, features: meeting.features.union(device.features.subtracting(.ring)), in: space)
  }

  private static func poller(_ harness: DeviceHarness) throws -> Poller {
    let poller = try Poller()
    for one in harness.watched {
      try poller.add(one.descriptor, token: one.token, for: one.reportsChanges ? [.readable, .edge] : .readable)
    }
    return poller
  }

  func expect(_ condition: Bool, _ violation: @autoclosure () -> String) {
    if !condition, violations.count < 20 { violations.append(violation()) }
  }

  // MARK: The driver

  /// Memory for buffers, each on pages of its own.
  func allocate(_ count: Int) -> DMAAddress {
    let address = next
    next = next + (max(count, 1) + 4095) / 4096 * 4096
    precondition(next.rawValue <= rig.data.rawValue + UInt64(rig.dataBytes), "the test's memory is used up")
    return address
  }

  func readable(_ pieces: [[UInt8]]) -> [LiteralDescriptor] {
    pieces.filter { !$0.isEmpty }.map { bytes in
      let address = allocate(bytes.count)
      rig.literal.write(bytes, at: address)
      return LiteralDescriptor(address, UInt32(bytes.count))
    }
  }

  func writable(_ pieces: [Int]) -> [LiteralDescriptor] {
    pieces.filter { $0 > 0 }.map { count in
      let address = allocate(count)
      rig.literal.write([UInt8](repeating: 0xee, count: count), at: address)
      return LiteralDescriptor(address, UInt32(count), writable: true)
    }
  }

  /// Makes a chain available; the device is not kicked. Returns a number to ask for it by.
  func post(_ pieces: [LiteralDescriptor]) throws -> Int {
    guard room(for: pieces.count) > 0, (rig.ring as? DriverQueueRing)?.isBroken != true else { throw RingIsUseless() }
    let table = rig.kind.indirect ? rig.tables + 16 * rig.tableCapacity * (tables % Int(rig.kind.size)) : nil
    tables += 1
    let id = rig.ring.post(pieces, table: table)
    submitted += 1
    number[UInt32(id)] = submitted
    posted[submitted] = Posted(pieces: pieces)
    return submitted
  }

  /// How many more chains of so many descriptors the ring takes.
  func room(for pieces: Int) -> Int { rig.ring.free / (rig.kind.indirect ? 1 : max(pieces, 1)) }

  // MARK: The device

  /// Publishes, kicks once, and lets the device work until nothing is in flight; then checks everything it did.
  func serve() throws {
    publish()
    harness.kick(0)
    try settle()
    reap()
    check()
  }

  func publish() {
    remember()
    rig.ring.publish()
  }

  /// Memory as it is now is what the device must leave alone.
  func remember() {
    let count = min(Int(next.rawValue - rig.data.rawValue) + 8192, rig.dataBytes)
    before = rig.literal.read(count, at: rig.data)
  }

  func kick() { harness.kick(0) }

  /// Serves completions until nothing is in flight.
  func settle() throws {
    var ready = ReadySet()
    while harness.inFlight > 0 {
      guard !harness.watched.isEmpty, try poller.wait(into: &ready, timeout: .seconds(20)) > 0 else {
        expect(false, "\(harness.inFlight) chains are with the device, and nothing happens")
        return
      }
      for i in ready.indices { harness.ready(ready.token(i)) }
    }
  }

  /// What the device reported last: completions of requests that a reset gave up.
  func drainCompletions() throws {
    var ready = ReadySet()
    while try poller.wait(into: &ready, timeout: .zero) > 0 { for i in ready.indices { harness.ready(ready.token(i)) } }
  }

  func reap() {
    for used in rig.ring.takeUsed() {
      guard let n = number.removeValue(forKey: used.id), let entry = posted[n], entry.used == nil else {
        expect(false, "used, but not available: \(used)")
        continue
      }
      posted[n]!.used = Int(used.length)
      let room = entry.pieces.reduce(0) { $0 + ($1.isWritable ? Int($1.length) : 0) }
      expect(Int(used.length) <= room, "\(used.length) bytes are said to be written where there is room for \(room)")
    }
    if let ring = rig.ring as? DriverQueueRing { expect(ring.errors.isEmpty, "the driver's queue: \(ring.errors)") }
  }

  /// Nothing changed but what chains gave the device to write.
  func check() {
    let after = rig.literal.read(before.count, at: rig.data)
    guard after != before else { return }
    var expected = before
    for entry in posted.values {
      for piece in entry.pieces where piece.isWritable && piece.length > 0 && piece.address >= rig.data {
        let start = Int(piece.address.rawValue - rig.data.rawValue)
        guard start + Int(piece.length) <= after.count else { continue }
        expected.replaceSubrange(start..<start + Int(piece.length), with: after[start..<start + Int(piece.length)])
      }
    }
    if expected != after {
      let at = expected.indices.first { expected[$0] != after[$0] } ?? 0
      expect(false, "byte \(at) of memory changed, and no chain gave it to the device")
    }
  }

  // MARK: What came of it

  func used(_ n: Int) -> Int? { posted[n]?.used }

  /// All device-writable bytes of a chain.
  func bytes(_ n: Int) -> [UInt8] {
    (posted[n]?.pieces ?? []).filter(\.isWritable).flatMap { rig.literal.read(Int($0.length), at: $0.address) }
  }

  func isAnswered(_ n: Int, _ request: DeviceConformance.Request) -> Bool {
    guard let used = used(n) else { return false }
    return request.isAnswered(used, bytes(n))
  }

  /// Every chain came back; the memory is free again.
  func forget() {
    for (n, entry) in posted where entry.used == nil {
      expect(false, "chain \(n) of \(entry.pieces.count) descriptors did not come back")
    }
    posted = [:]
    next = rig.data
  }

  /// One chain came back; its memory stays in use.
  func finish(_ n: Int) {
    expect(posted[n]?.used != nil, "chain \(n) did not come back")
    posted[n] = nil
  }

  /// After a reset the driver forgets what it had made available.
  func abandon() {
    posted = [:]
    number = [:]
    next = rig.data
  }

  // MARK: A transport's work

  /// The same memory, with a new ring in it.
  func startAfresh() throws {
    rig.makeRing()
    try harness.start(0, rig.layout)
  }

  /// Another handler, as another process has it; the queue goes on at `state`.
  func replaceHandler(resumingAt state: QueueState) throws {
    harness = try Self.harness(device, rig.kind, faulting)
    poller = try Self.poller(harness)
    try harness.start(0, rig.layout, resumingAt: state)
  }
}
