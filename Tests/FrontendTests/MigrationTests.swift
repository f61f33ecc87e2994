import DMA
import Foundation
import FrontendKit
import HostIO
import Logging
import Storage
import Synchronization
import Testing
import VhostUser
import VhostUserBackend
import VhostUserFrontend
import Virtio
import VirtioBlock
import VirtioTestKit

@Suite("Guest memory that is copied by the dirty log while a disk writes to it", .timeLimit(.minutes(10)))
struct MigrationTests {
  private static let mebibyte = 1 << 20

  /// The other side of a migration: what was copied there, page by page.
  private final class Copier: Sendable {
    private let memory: GuestMemory
    private let log: FrontendLog
    private let copy = Mutex<[UInt8]>([])
    private let isDone = Atomic<Bool>(false)
    /// Pages that the driver writes itself: a machine monitor knows them by other means.
    private let own: Set<UInt64>
    let passes = Atomic<Int>(0)

    init(_ memory: GuestMemory, _ log: FrontendLog, byteCount: Int, own: Set<UInt64>) {
      self.memory = memory
      self.log = log
      self.own = own
      copy.withLock { $0 = [UInt8](repeating: 0, count: byteCount) }
      pass(Set((0..<UInt64(byteCount / 4096))))
    }

    private func pass(_ pages: Set<UInt64>) {
      copy.withLock { copy in
        var span = copy.mutableSpan
        for page in pages where Int(page) * 4096 < span.count {
          var part = span.extracting(Int(page) * 4096..<Int(page + 1) * 4096)
          _ = memory.copy(from: GuestAddress(page * 4096), into: &part)
        }
      }
      passes.add(1, ordering: .relaxed)
    }

    func run() { while !isDone.load(ordering: .acquiring) { pass(Set(log.takePages()).union(own)) } }

    func end() { isDone.store(true, ordering: .releasing) }

    /// After the rings have stopped: what is left, and then which pages differ.
    func differences() -> [Int] {
      pass(Set(log.takePages()).union(own))
      let count = copy.withLock { $0.count }
      let now = memory.bytes(count, at: GuestAddress(0))
      return copy.withLock { copy in
        (0..<count / 4096).filter { now[$0 * 4096..<$0 * 4096 + 4096] != copy[$0 * 4096..<$0 * 4096 + 4096] }
      }
    }
  }

  /// A client whose slots lie on both sides of a region's end: the third is cut in the middle.
  private func place(around border: Int) -> BlockClientPlace {
    var place = BlockClientPlace(base: GuestAddress(0), queueSize: 64, slots: 8, slotBytes: 32 << 10)
    let before = Int(place.end.rawValue) - 8 * (32 << 10)
    place.base = GuestAddress(UInt64(border - 80 << 10) - UInt64(before))
    return place
  }

  private func pages(_ place: BlockClientPlace) -> Set<UInt64> {
    // Rings but for the device's part, headers with status bytes, tables.
    let device = (place.base.rawValue + 8192) / 4096
    return Set(place.base.rawValue / 4096..<place.base.rawValue / 4096 + 5).subtracting([device])
  }

  private func work(_ disk: inout BlockClient, _ random: inout SystemRandomNumberGenerator) throws {
    while disk.freeSlots > 0 {
      _ = try disk.add(
        .read, sector: UInt64.random(in: 0..<8000, using: &random), count: 512 * Int.random(in: 1...64, using: &random))
    }
    disk.publish()
    let done = try disk.wait()
    #expect(done.status == 0)
  }

  @Test(
    "The copy is the memory in the end, with regions that adjoin, buffers across them, and memory that is added meanwhile",
    // packed ring; memory as one table (SET_MEM_TABLE) instead of region by region
    arguments: [false, true], [false, true])
  func copied(_ packed: Bool, _ asTable: Bool) throws {
    let scratch = try TemporaryFolder()
    let path = try scratch.image(size: 4 << 20)
    try Data(pattern(4 << 20, seed: 7)).write(to: URL(fileURLWithPath: path))
    var options = BlockOptions(path: path)
    options.queueCount = 2
    let (near, far) = try UnixSocket.pair()
    let server = try VhostUserServer(try BlockDevice(options), on: .connected(far), log: .silent)
    let thread = try WorkerThread(name: "back-end") { try? server.run() }
    let memory = FrontendMemory()
    // The higher one first: the next mapping then usually ends where this one begins.
    try memory.add(byteCount: UInt64(Self.mebibyte), at: GuestAddress(UInt64(Self.mebibyte)))
    try memory.add(byteCount: UInt64(Self.mebibyte), at: GuestAddress(0))
    let frontend = try Frontend(near, memory: memory)
    var wanted = Frontend.usualProtocolFeatures
    if asTable { wanted.remove(.configureMemorySlots) }
    try frontend.negotiate(
      packed ? [.version1, .ringPacked, Frontend.logAllBit] : [.version1, Frontend.logAllBit], protocolFeatures: wanted)
    try frontend.share()
    let (first, second) = (place(around: Self.mebibyte), place(around: 2 * Self.mebibyte))
    let log = try frontend.startLogging(byteCount: 4096)
    var disk = try BlockClient(frontend, queue: 0, place: first)
    var random = SystemRandomNumberGenerator()
    try work(&disk, &random)
    let copier = Copier(memory.guest, log, byteCount: 3 * Self.mebibyte, own: pages(first).union(pages(second)))
    let copying = try WorkerThread(name: "copier") { copier.run() }
    for _ in 0..<400 { try work(&disk, &random) }
    // Memory comes while requests are in flight.
    let added = try memory.add(byteCount: UInt64(Self.mebibyte), at: GuestAddress(UInt64(2 * Self.mebibyte)))
    if asTable { try frontend.share() } else { try frontend.add(added) }
    var more = try BlockClient(frontend, queue: 1, place: second)
    for round in 0..<400 {
      try work(&disk, &random)
      try work(&more, &random)
      // The table is told again and again while requests are in flight.
      if asTable, round % 40 == 0 { try frontend.share() }
    }
    _ = try frontend.stopQueue(0)
    _ = try frontend.stopQueue(1)
    copier.end()
    copying.join()
    #expect(copier.differences() == [], "pages that differ")
    #expect(copier.passes.load(ordering: .relaxed) > 10)
    frontend.close()
    thread.join()
  }
}
