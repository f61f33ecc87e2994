import DMA
import HostIO
import Storage
import Synchronization
import Testing
import Virtio
import VirtioBlock
import VirtioServing
import VirtioTestKit

@testable import VhostUser
@testable import VhostUserBackend

/// Descriptors of the ring. Several times what a handler takes at once: there is always something left.
private let ringSize: UInt16 = 256

/// A driver that asks for a flush, and then for the disk's name, again and again: its ring is never empty.
private final class RestlessDriver {
  private let frontend: RawFrontend
  private let thread: WorkerThread
  private let stopping: EventFD
  /// When the flush was made available.
  let begun: ContinuousClock.Instant
  private static let flushStatus = 0x5800
  private static let (table, pieces) = (0x10000, 500)

  /// Starts with a flush, and goes on as soon as the device has taken it.
  init(_ frontend: RawFrontend, base: UInt64) throws {
    self.frontend = frontend
    stopping = try EventFD()
    typealias Place = RawFrontend.Place
    func descriptor(_ i: Int, _ place: Int, _ count: UInt32, _ flags: UInt16, in table: Int = Place.descriptors) {
      frontend.poke(RawFrontend.descriptor(base, place, count, flags, UInt16(i + 1)), table + 16 * i)
    }
    frontend.poke(UInt32(4).bytes + [UInt8](repeating: 0, count: 12), Place.header)
    frontend.poke(UInt32(8).bytes + [UInt8](repeating: 0, count: 12), Place.header + 0x100)
    frontend.poke([0xff], Self.flushStatus)
    descriptor(0, Place.header, 16, 1)
    descriptor(1, Self.flushStatus, 1, 2)
    // In hundreds of pieces, so that a ring full of them lasts for some time.
    descriptor(3, Self.table, UInt32(16 * Self.pieces), 4)
    for i in 0..<Self.pieces {
      let (place, count, flags): (Int, UInt32, UInt16) =
        i == 0 ? (Place.header + 0x100, 16, 1) : i < Self.pieces - 1 ? (Place.data, 20, 3) : (Place.status, 1, 2)
      descriptor(i, place, count, flags, in: Self.table)
    }
    let start = frontend.usedIndex
    frontend.poke(UInt16(0).bytes, Place.available + 4 + 2 * Int(start % ringSize))
    frontend.poke((start &+ 1).bytes, Place.available + 2)
    begun = ContinuousClock.now
    frontend.kick.signal()
    func taken() -> UInt64 { frontend.server.statistics.queues.first?.counts.requests ?? 0 }
    while taken() == 0, begun.duration(to: .now) < .seconds(5) {}
    for i in 0..<Int(ringSize) { frontend.poke(UInt16(3).bytes, Place.available + 4 + 2 * i) }
    let (mapping, kick, stopping) = (frontend.mapping, frontend.kick, stopping)
    thread = try WorkerThread(name: "driver") {
      guard let cells = mapping.cells(from: 0, byteCount: 0x4000) else { return }
      // A full ring lasts for much longer than it sleeps.
      repeat {
        // Never more than the ring holds, with the flush.
        let used = UInt16(littleEndian: cells.loadAcquire16(at: Place.used + 2))
        cells.storeRelease16((used &+ ringSize).littleEndian, at: Place.available + 2)
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        if cells.load16(at: Place.used) & 1 == 0 { kick.signal() }
      } while (try? stopping.wait(timeout: .milliseconds(1))) == false
    }
  }

  deinit { stop() }

  var isFlushed: Bool { frontend.peek(1, Self.flushStatus) == [0] }

  func stop() {
    stopping.signal()
    thread.join()
  }
}

@Suite(
  "Drivers that never pause", .timeLimit(.minutes(10)), .serialized,
  .enabled("SKIPPED: no /dev/fuse, or not root") { SlowDisk.isThere() })
struct StarvationTests {
  static let flushTime = Duration.milliseconds(60)

  enum PendingReply: String, CaseIterable {
    case flush, invalidate, memoryTable, log, base, reset

    /// The most that it takes longer than the flush.
    var bound: Duration { self == .flush ? .milliseconds(10) : .milliseconds(50) }
  }

  /// How much longer than the flush under way a reply takes, with a driver that does not pause.
  private func delay(_ reply: PendingReply, _ engine: DiskEngine) throws -> Duration {
    let storage = try SlowDisk(byteCount: 1 << 20, flush: 60)
    var options = BlockOptions(path: storage.path)
    options.engine = engine
    let isTranslated = reply == .invalidate
    let base = isTranslated ? RawFrontend.iova : RawFrontend.guest
    let features: Features = [.version1, .indirectDescriptors, Features(bit: 9)]
    let frontend = try RawFrontend.sharing(
      isTranslated ? features.union(.accessPlatform) : features, device: try BlockDevice(options))
    if isTranslated { try frontend.must(.iotlb(frontend.update(base, size: 0x20000))) }
    try frontend.startRing(base: isTranslated ? base : RawFrontend.frontend, size: UInt32(ringSize))
    let driver = try RestlessDriver(frontend, base: base)
    let begun = driver.begun
    switch reply {
    case .flush:
      while !driver.isFlushed, begun.duration(to: .now) < .seconds(5) {}
      #expect(driver.isFlushed)
    // Pages that the ring and its requests use: with others it need not wait.
    case .invalidate: try frontend.must(.iotlb(.invalidate(base, 0x20000)))
    case .memoryTable: try frontend.share()
    case .log: _ = try frontend.startLog()
    case .base: try frontend.stopRing()
    case .reset: try frontend.must(.setStatus(0))
    }
    let time = begun.duration(to: .now)
    driver.stop()
    withExtendedLifetime(storage) {}
    return max(.zero, time - Self.flushTime)
  }

  @Test(
    "Completions, unmaps and everything that a front-end asks for have their turn, soon",
    arguments: PendingReply.allCases, [DiskEngine.uring, .synchronous])
  func turns(_ reply: PendingReply, _ engine: DiskEngine) throws {
    // Other tests want the processors too: what holds once holds by the rules, and without them it never does.
    var best = Duration.seconds(60)
    for _ in 0..<20 where best > reply.bound { best = min(best, try delay(reply, engine)) }
    #expect(best <= reply.bound, "\(reply): \(best) more than the flush")
  }
}
