import DMA
import Foundation
import FrontendKit
import HostIO
import VhostUser
import VhostUserFrontend
import Virtio

/// One row's work.
struct BlockJob: Hashable {
  var operation: DiskOperation
  var isRandom: Bool
  var blockBytes: Int
  var depth: Int
  var queues: Int

  var operationName: String { operation == .read ? "read" : "write" }
  var patternName: String { isRandom ? "random" : "sequential" }
}

/// What one round of a job gave.
struct BlockSample {
  var requests: Int
  var seconds: Double
  var processorNanoseconds: UInt64
  var latencies: [UInt32]

  var rate: Double { Double(requests) / seconds }
  var processorTime: Double { Double(processorNanoseconds) / Double(max(1, requests)) }
}

struct BenchFailure: Error, CustomStringConvertible {
  var description: String
  init(_ description: String) { self.description = description }
}

/// How a back-end is driven.
struct BlockSetup {
  var queues: Int
  var slots: Int
  var slotBytes: Int
  var queueSize: UInt16
  var isIndirect: Bool
  /// With ACCESS_PLATFORM, everything mapped once and for all.
  var isTranslated: Bool
  /// How much an UPDATE tells: nil for the whole mapping.
  var granule: UInt64?
  /// Spin instead of asking for calls.
  var polls: Bool
  var packed: Bool
  var imageBytes: UInt64
  /// Seconds that the back-end may take to start.
  var patience = 5.0
}

/// A running back-end with a front-end connected to it.
final class BlockTarget {
  let name: String
  private let process: BackendProcess
  private let frontend: Frontend
  private var clients: ClientSet
  private let setup: BlockSetup
  private let poller: Poller
  private var position: UInt64 = 0
  private var random: UInt64 = 88_172_645_463_325_252

  init(_ name: String, _ process: BackendProcess, _ setup: BlockSetup) throws {
    self.name = name
    self.process = process
    self.setup = setup
    guard process.waitForSocket(seconds: setup.patience) else {
      throw BenchFailure("\(name) did not start:\n\(process.output)")
    }
    let shift: UInt64 = setup.isTranslated ? 1 << 40 : 0
    var places: [BlockClientPlace] = []
    var base = GuestAddress(0)
    for _ in 0..<setup.queues {
      let place = BlockClientPlace(
        base: base, queueSize: setup.queueSize, slots: setup.slots, slotBytes: setup.slotBytes)
      places.append(place)
      base = place.end
    }
    let memory = try FrontendMemory(byteCount: (base.rawValue | (2 << 20) - 1) + 1)
    let frontend = try process.connect(memory: memory)
    var wanted: Features = [.version1, .eventIndex, .indirectDescriptors, Features(bit: 9), Features(bit: 12)]
    if setup.isTranslated { wanted.insert(.accessPlatform) }
    if setup.packed { wanted.insert(.ringPacked) }
    try frontend.negotiate(wanted)
    if setup.isTranslated, !frontend.features.contains(.accessPlatform) {
      throw BenchFailure("\(name) does not take ACCESS_PLATFORM")
    }
    if setup.packed, !frontend.features.contains(.ringPacked) {
      throw BenchFailure("\(name) does not take packed rings")
    }
    try frontend.share()
    if setup.isTranslated {
      frontend.setUpdateGranule(setup.granule)
      try frontend.map(
        FrontendMapping(address: DMAAddress(shift), byteCount: memory.guest.byteCount, guestAddress: GuestAddress(0)))
    }
    if frontend.protocolFeatures.contains(.status) {
      try frontend.setStatus([.acknowledge, .driver, .featuresOK, .driverOK])
    }
    self.frontend = frontend
    clients = try ClientSet(setup.queues) { index in
      try BlockClient(frontend, queue: index, place: places[index], shift: shift, indirect: setup.isIndirect)
    }
    poller = try Poller()
    for i in 0..<setup.queues { try poller.add(clients[i].events.call, token: UInt64(i)) }
  }

  /// Makes images of bytes that ``check()`` knows, so that no page of them is a hole. All are written in turn, a MiB
  /// each: their pages are then alike, where one image after the other gets pages that differ in speed by a fifth.
  static func makeImages(_ paths: [String], bytes: UInt64) throws {
    let files = try paths.map { path in
      _ = FileManager.default.createFile(atPath: path, contents: nil)
      return try FileHandle(forWritingTo: URL(fileURLWithPath: path))
    }
    let mebibyte = Data((0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ 7) })
    for _ in 0..<bytes >> 20 { for file in files { try file.write(contentsOf: mebibyte) } }
    for file in files { try file.close() }
  }

  /// Writes a block and reads it back, and reads one of the image.
  func check() throws {
    let count = setup.slotBytes
    let there = try clients[0].read(sector: setup.imageBytes / 1024, count: count)
    guard there == (0..<count).map({ UInt8(truncatingIfNeeded: $0 &* 31 &+ 7) }) else {
      throw BenchFailure("\(name) returned bytes that are not in the image")
    }
    let other = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ 1) }
    try clients[0].write(sector: 0, other)
    guard try clients[0].read(sector: 0, count: count) == other else {
      throw BenchFailure("\(name) returned other bytes than were written")
    }
  }

  private func nextSector(_ job: BlockJob) -> UInt64 {
    let blocks = setup.imageBytes / UInt64(job.blockBytes)
    let perBlock = UInt64(job.blockBytes / 512)
    guard job.isRandom else {
      position += 1
      return position % blocks * perBlock
    }
    random ^= random << 13
    random ^= random >> 7
    random ^= random << 17
    return random % blocks * perBlock
  }

  /// Keeps `job.depth` requests under way on each queue for a while.
  ///
  /// - Parameter limit: requests after which it ends before its time.
  func run(_ job: BlockJob, seconds: Double, limit: Int = .max) throws -> BlockSample {
    var latencies: [UInt32] = []
    latencies.reserveCapacity(1 << 20)
    var begun = [UInt64](repeating: 0, count: setup.queues * setup.slots)
    var ready = ReadySet()
    var requests = 0
    let processor = process.processorTime
    let start = now()
    let end = start + UInt64(seconds * 1e9)
    var time = start
    var isOver = false
    while true {
      var progressed = 0
      for i in 0..<job.queues {
        progressed += try step(i, job, isOver, &begun, &latencies, &time)
      }
      requests += progressed
      isOver = time >= end || requests >= limit
      if progressed > 0 { continue }
      if isOver, (0..<job.queues).allSatisfy({ clients[$0].outstanding == 0 }) { break }
      if setup.polls {
        time = now()
        continue
      }
      // Nothing more to take: ask to be called, look once more, sleep.
      var isReady = false
      for i in 0..<job.queues where clients[i].armCall() { isReady = true }
      if isReady { continue }
      guard try poller.wait(into: &ready, timeout: .seconds(10)) > 0 else {
        throw BenchFailure("\(name) did not answer within 10 seconds:\n\(process.output)")
      }
      for k in ready.indices { _ = try clients[Int(ready.token(k))].events.call.drain() }
    }
    let elapsed = Double(now() - start) / 1e9
    return BlockSample(
      requests: requests, seconds: elapsed, processorNanoseconds: process.processorTime &- processor,
      latencies: latencies)
  }

  /// Takes what a queue has done and fills it up again. Returns how many were done.
  private func step(
    _ i: Int, _ job: BlockJob, _ isOver: Bool, _ begun: inout [UInt64], _ latencies: inout [UInt32],
    _ time: inout UInt64
  ) throws -> Int {
    var done = 0
    var isTimed = false
    while let one = try clients[i].reap() {
      guard one.status == 0 else { throw BenchFailure("\(name): a request ended with status \(one.status)") }
      if !isTimed {
        time = now()
        isTimed = true
      }
      done += 1
      if latencies.count < latencies.capacity {
        latencies.append(UInt32(clamping: time &- begun[i &* setup.slots &+ one.slot]))
      }
    }
    guard !isOver else { return done }
    var added = 0
    while clients[i].outstanding < job.depth {
      if added == 0, !isTimed { time = now() }
      guard let slot = try clients[i].add(job.operation, sector: nextSector(job), count: job.blockBytes) else { break }
      begun[i &* setup.slots &+ slot] = time
      added += 1
    }
    if added > 0 { clients[i].publish() }
    return done
  }

  /// Ends the back-end politely. Returns all that it wrote.
  func finish() -> String {
    process.stop(patience: 20)
    return process.output
  }

  /// Misses and the like, for a line at the end.
  var counts: FrontendCounts { frontend.counts }
}

/// Several clients, which an array cannot hold.
struct ClientSet: ~Copyable {
  private var clients: FixedArray<BlockClient?>

  init(_ count: Int, _ make: (Int) throws -> BlockClient) throws {
    var failure: (any Error)?
    clients = FixedArray(count: count) { index in
      do { return try make(index) } catch {
        failure = error
        return nil
      }
    }
    if let failure { throw failure }
  }

  subscript(_ index: Int) -> BlockClient {
    _read { yield clients[index]! }
    _modify { yield &clients[index]! }
  }
}
