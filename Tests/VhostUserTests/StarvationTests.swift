import DMA
import HostIO
import Synchronization
import Testing
import VhostUser
import Virtio
import VirtioDevices
import VirtioTestKit

/// A driver that makes a request for the disk's name available again whenever one is done, as fast as it can, and once a flush.
private final class RestlessDriver {
  private let frontend: RawFrontend
  private let thread: WorkerThread
  private let stopping = Shared(Atomic(false))
  private static let flushStatus = 0x5800

  /// A thing to share with a thread.
  final class Shared<Value: ~Copyable & Sendable>: Sendable {
    let value: Value
    init(_ value: consuming Value) { self.value = value }
  }

  /// Starts with a flush, and goes on as soon as the device has taken it.
  init(_ frontend: RawFrontend, base: UInt64) throws {
    self.frontend = frontend
    typealias Place = RawFrontend.Place
    func descriptor(_ i: Int, _ place: Int, _ count: UInt32, _ flags: UInt16) {
      frontend.poke((base + UInt64(place)).bytes + count.bytes + flags.bytes + UInt16(i + 1).bytes, Place.descriptors + 16 * i)
    }
    frontend.poke(UInt32(4).bytes + [UInt8](repeating: 0, count: 12), Place.header)
    frontend.poke(UInt32(8).bytes + [UInt8](repeating: 0, count: 12), Place.header + 0x100)
    frontend.poke([0xff], Self.flushStatus)
    descriptor(0, Place.header, 16, 1)
    descriptor(1, Self.flushStatus, 1, 2)
    descriptor(3, Place.header + 0x100, 16, 1)
    descriptor(4, Place.data, 20, 3)
    descriptor(5, Place.status, 1, 2)
    let start = frontend.usedIndex
    frontend.poke(UInt16(0).bytes, Place.available + 4 + 2 * Int(start % 16))
    frontend.poke((start &+ 1).bytes, Place.available + 2)
    frontend.kick.signal()
    let requests = frontend.server.statistics.queues.first?.counts.requests ?? 0
    while (frontend.server.statistics.queues.first?.counts.requests ?? 0) == requests {}
    for i in 0..<16 { frontend.poke(UInt16(3).bytes, Place.available + 4 + 2 * i) }
    let (mapping, kick, stopping) = (frontend.mapping, frontend.kick, stopping)
    thread = try WorkerThread(name: "driver") {
      guard let cells = mapping.cells(from: 0, byteCount: 0x4000) else { return }
      while !stopping.value.load(ordering: .relaxed) {
        // Never more than seven besides the flush.
        cells.storeRelease16((UInt16(littleEndian: cells.loadAcquire16(at: Place.used + 2)) &+ 8).littleEndian, at: Place.available + 2)
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        if cells.load16(at: Place.used) & 1 == 0 { kick.signal() }
      }
    }
  }

  deinit { stop() }

  var isFlushed: Bool { frontend.peek(1, Self.flushStatus) == [0] }

  func stop() {
    stopping.value.store(true, ordering: .relaxed)
    thread.join()
  }
}

@Suite(
  "Drivers that never pause", .timeLimit(.minutes(5)), .serialized, .enabled("SKIPPED: no /dev/fuse, or not root") { SlowDisk.isThere() })
struct StarvationTests {
  static let flushTime = Duration.milliseconds(60)

  enum Matter: String, CaseIterable {
    case flush, invalidate, memoryTable, log, base, reset

    /// The most that it takes longer than the flush.
    var bound: Duration { self == .flush ? .milliseconds(10) : .milliseconds(50) }
  }

  /// How much longer than the flush under way a matter takes, with a driver that does not pause.
  private func delay(_ matter: Matter, _ engine: BlockEngine) throws -> Duration {
    let storage = try SlowDisk(byteCount: 1 << 20, flush: 60)
    var options = BlockOptions(path: storage.path)
    options.engine = engine
    let frontend = try RawFrontend(device: try BlockDevice(options))
    let isTranslated = matter == .invalidate
    let base = isTranslated ? RawFrontend.iova : RawFrontend.guest
    try frontend.negotiate(isTranslated ? [.version1, .accessPlatform, Features(bit: 9)] : [.version1, Features(bit: 9)])
    try frontend.share()
    if isTranslated { try frontend.must(.iotlb(frontend.update(base, size: 0x10000))) }
    try frontend.startRing(base: isTranslated ? base : RawFrontend.frontend)
    let begun = ContinuousClock.now
    let driver = try RestlessDriver(frontend, base: base)
    switch matter {
    case .flush:
      while !driver.isFlushed, begun.duration(to: .now) < .seconds(5) {}
      #expect(driver.isFlushed)
    // Pages that the ring and its requests use: with others it need not wait.
    case .invalidate: try frontend.must(.iotlb(IOTLBMessage(kind: .invalidate, address: base, size: 0x10000)))
    case .memoryTable: try frontend.share()
    case .log:
      let log = try MemoryFile(name: "log", size: 1 << 20)
      _ = try frontend.ask(.setLogBase(LogArea(size: 1 << 20, offset: 0)), [log.descriptor.rawValue])
    case .base: _ = try frontend.ask(.getVringBase(VringState(index: 0, number: 0)))
    case .reset: try frontend.must(.setStatus(0))
    }
    let time = begun.duration(to: .now)
    driver.stop()
    return max(.zero, time - Self.flushTime)
  }

  @Test(
    "Completions, unmaps and everything that a front-end asks for have their turn, soon", arguments: Matter.allCases, [BlockEngine.uring, .synchronous])
  func turns(_ matter: Matter, _ engine: BlockEngine) throws {
    // Other tests want the processors too: what holds once holds by the rules, and without them it never does.
    var best = Duration.seconds(60)
    for _ in 0..<10 where best > matter.bound { best = min(best, try delay(matter, engine)) }
    #expect(best <= matter.bound, "\(matter): \(best) more than the flush")
  }
}
