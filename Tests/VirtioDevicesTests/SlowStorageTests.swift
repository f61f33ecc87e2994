import DMA
import HostIO
import Testing
import VirtioTestKit

@testable import Storage
@testable import VirtioBlock

@Suite(
  "Storage that answers late", .timeLimit(.minutes(10)),
  .enabled("SKIPPED: no /dev/fuse, or not root") { SlowDisk.isThere() })
struct SlowStorageTests {
  /// With deferred work the kernel does about twenty items a call, and signals for the first one only.
  @Test(
    "A thread that sleeps only when nothing is pending is woken for every completion", arguments: IOUring.Setup.allCases
  )
  func wakes(_ best: IOUring.Setup) throws {
    let count = 400
    let storage = try SlowDisk(byteCount: count * 8192)
    let file = try BlockFile(path: storage.path)
    let memory = try GuestMemory(byteCount: 4096)
    var iotlb = IOTLB(PhysicalSpace(memory))
    _ = iotlb.beginRound()
    var pool = SegmentPool()
    var buffer = pool.take()
    try iotlb.resolve(DMAAddress(0), count: 4096, for: .write, into: &buffer)
    var ring = try IOUring(entries: 512, atBest: best)
    let event = try EventFD()
    try ring.signal(event)
    let poller = try Poller()
    try poller.add(event.rawValue, token: 0, for: [.readable, .edge])
    var ready = ReadySet()
    var set = CompletionSet()
    for round in 0..<5 {
      var results: [UInt64: Int32] = [:]
      for i in 0..<count {
        // Never twice the same page: what is in the page cache does not wait.
        let queued = ring.read(
          file, into: buffer.readable, 0..<1, at: UInt64((round * count + i) % (2 * count)) * 4096, tag: UInt64(i))
        #expect(queued == .queued)
      }
      try ring.submit()
      while results.count < count {
        repeat {
          ring.reap(into: &set)
          for i in set.indices { results[set.tag(i)] = set.result(i) }
        } while ring.hasPendingWork
        if results.count == count { break }
        guard try poller.wait(into: &ready, timeout: .seconds(5)) > 0 else {
          Issue.record("asleep in round \(round), with \(count - results.count) of \(count) requests under way")
          return
        }
      }
      #expect(results.values.allSatisfy { $0 == 4096 })
    }
    iotlb.endRound()
    withExtendedLifetime(storage) {}
  }

  @Test("Several hundred reads at once come back, each with its data", arguments: DiskEngine.allCases, [0, 3])
  func manyReads(_ engine: DiskEngine, _ latency: Int) throws {
    let count = 300
    let storage = try SlowDisk(byteCount: count * 8192, read: latency)
    var options = BlockOptions(path: storage.path)
    options.engine = engine
    options.readOnly = true
    options.queueSize = 1024
    let rig = try DeviceRig(try BlockDevice(options), kind: RingKind(indirect: true), queueSize: 1024)
    let numbers = (0..<count).map { rig.submit(readable: [Wire.header(0, UInt64($0) * 16)], writable: [4096, 1]) }
    try rig.run()
    for (i, number) in numbers.enumerated() {
      let (used, bytes) = try #require(rig.take(number))
      #expect(used == 4097 && bytes[4096] == 0)
      #expect((0..<8).allSatisfy { bytes[$0 * 512 + 3] == SlowDisk.byte(at: i * 8192 + $0 * 512 + 3) })
    }
    withExtendedLifetime(storage) {}
  }
}
