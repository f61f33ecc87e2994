import DMA
import Foundation
import Glibc
import HostIO
import Synchronization
import Testing
import VirtioTestKit

private func hasIOUring() -> Bool { (try? IOUring(entries: 4)) != nil }

extension IOUring {
  /// The results of that many requests, by tag, waited for.
  fileprivate mutating func results(_ count: Int) throws -> [UInt64: Int32] {
    var done = CompletionSet()
    var results: [UInt64: Int32] = [:]
    while results.count < count {
      try submitAndWait(timeout: .seconds(10))
      reap(into: &done)
      try #require(done.indices.isEmpty == false)
      for i in done.indices { results[done.tag(i)] = done.result(i) }
    }
    return results
  }
}

@Suite("io_uring", .enabled("SKIPPED: this kernel has no io_uring for us") { hasIOUring() }) struct IOUringTests {
  private let directory: TemporaryFolder

  init() throws { directory = try TemporaryFolder() }

  @Test(
    "Reads, writes and flushes complete with their tags, in every set-up", arguments: IOUring.Setup.allCases,
    [false, true])
  func roundTrip(best: IOUring.Setup, registered: Bool) throws {
    let file = try BlockFile(path: try directory.file("disk", pattern(65536)))
    var ring = try IOUring(entries: 8, atBest: best)
    let setup = ring.setup
    #expect(setup.rawValue >= best.rawValue)
    if registered { try ring.register(file) }
    let one = try Buffers([(0, 4096)])
    let many = try Buffers([(0, 16), (4096, 1000), (8192, 8)])
    let out = try Buffers([(0, 512), (4096, 512)])
    out.bytes = pattern(1024, seed: 8)
    let queued = [
      ring.read(file, into: one.list.readable, 0..<1, at: 100, tag: 1),
      ring.read(file, into: many.list.readable, 1..<3, at: 8192, tag: 2),
      ring.write(file, from: out.list.readable, 0..<2, at: 32768, durable: true, tag: 3),
    ]
    #expect(queued == [.queued, .queued, .queued])
    try ring.submit()
    #expect(try ring.results(3) == [1: 4096, 2: 1008, 3: 1024])
    #expect(one.bytes == Array(pattern(65536)[100..<4196]))
    #expect(Array(many.bytes[16...]) == Array(pattern(65536)[8192..<9200]))
    #expect(ring.flush(file, tag: 4) == .queued)
    #expect(try ring.results(1) == [4: 0])
    #expect(ring.inFlight == 0)
    #expect(try Data(contentsOf: URL(filePath: file.path))[32768..<33792] == Data(pattern(1024, seed: 8)))
  }

  @Test(
    "A ring made on one thread is used by another, and its event wakes that one's poller",
    arguments: IOUring.Setup.allCases)
  func handedOver(best: IOUring.Setup) throws {
    let file = try BlockFile(path: try directory.file("disk", pattern(65536)))
    let event = try EventFD()
    let ring = try IOUring(entries: 8, atBest: best)
    try ring.signal(event)
    try ring.register(file)
    let good = Shared(Atomic(0))
    let thread = try WorkerThread(name: "ring", moving: ring) { ring in
      var ring = ring
      do {
        let poller = try Poller()
        try poller.add(event.rawValue, token: 1, for: [.readable, .edge])
        let buffers = try Buffers([(0, 4096)])
        var ready = ReadySet()
        var done = CompletionSet()
        for round in 0..<100 {
          guard
            ring.read(file, into: buffers.list.readable, 0..<1, at: UInt64(round * 512), tag: UInt64(round)) == .queued
          else { return }
          try ring.submit()
          while true {
            if ring.reap(into: &done) > 0 { break }
            if try poller.wait(into: &ready, timeout: .seconds(10)) == 0 { return }
          }
          if done.result(0) == 4096, buffers.bytes == Array(pattern(65536)[round * 512..<round * 512 + 4096]) {
            good.value.add(1, ordering: .relaxed)
          }
        }
      } catch {}
    }
    thread.join()
    #expect(good.value.load(ordering: .relaxed) == 100)
  }

  @Test("Waiting for a descriptor completes when it is ready, or when cancelled")
  func pollAndCancel() throws {
    var ring = try IOUring(entries: 8)
    let (event, never) = (try EventFD(), try EventFD())
    var done = CompletionSet()
    _ = ring.poll(event.rawValue, for: .readable, tag: 1)
    _ = ring.poll(never.rawValue, for: .readable, tag: 2)
    try ring.submit()
    ring.reap(into: &done)
    #expect(done.count == 0)
    event.signal()
    try ring.submitAndWait(timeout: .seconds(10))
    ring.reap(into: &done)
    let (tag, result) = (done.tag(0), done.result(0))
    #expect(tag == 1 && result > 0)
    _ = ring.cancel(2, tag: 3)
    #expect(try ring.results(2) == [2: -ECANCELED, 3: 0])
  }

  @Test("A full ring says so, and takes more after reaping")
  func full() throws {
    let file = try BlockFile(path: try directory.file("disk", pattern(4096)))
    var ring = try IOUring(entries: 4)
    let capacity = ring.capacity
    var queued = 0
    var done = CompletionSet()
    while queued <= capacity * 2 {
      switch ring.flush(file, tag: UInt64(queued)) {
      case .queued: queued += 1
      case .unsuitable: Issue.record("a flush is always suitable")
      case .full:
        let before = ring.inFlight
        #expect(before <= capacity)
        if ring.unsubmitted > 0 { try ring.submit() } else { try ring.submitAndWait(timeout: .seconds(10)) }
        ring.reap(into: &done)
      }
    }
    while ring.inFlight > 0 {
      try ring.submitAndWait(ring.inFlight, timeout: .seconds(10))
      ring.reap(into: &done)
    }
  }

  @Test("What a ring cannot take is left to the file's own calls")
  func unsuitable() throws {
    let file = try BlockFile(path: try directory.file("disk", pattern(65536)))
    let readOnly = try BlockFile(path: file.path, options: .init(readOnly: true, locked: false))
    var ring = try IOUring(entries: 4)
    let many = try Buffers((0..<1025).map { ($0 * 64, 32) })
    let answers = [
      ring.read(file, into: many.list.readable, 0..<1025, at: 0, tag: 1),
      ring.read(file, into: many.list.readable, 0..<0, at: 0, tag: 1),
      ring.read(file, into: many.list.readable, 0..<1, at: .max, tag: 1),
      ring.write(file, from: many.list.readable, 0..<1, at: 65505, tag: 1),
      ring.write(file, from: many.list.readable, 0..<1, at: .max, tag: 1),
      ring.write(readOnly, from: many.list.readable, 0..<1, at: 0, tag: 1),
      ring.discard(readOnly, at: 0, count: 4096, tag: 1),
      ring.discard(file, at: 65536, count: 1, tag: 1),
    ]
    #expect(answers == Array(repeating: .unsuitable, count: 8))
    let most = ring.read(file, into: many.list.readable, 0..<1024, at: 0, tag: 2)
    let discard = ring.discard(file, at: 4096, count: 4096, tag: 3)
    #expect(most == .queued && discard == .queued)
    #expect(try ring.results(2) == [2: 32768, 3: 0])
  }

  @Test("Short reads at the end of the file are told, and finished by the file")
  func short() throws {
    let file = try BlockFile(path: try directory.file("disk", pattern(1000)))
    var ring = try IOUring(entries: 4)
    let buffers = try Buffers([(0, 600)])
    _ = ring.read(file, into: buffers.list.readable, 0..<1, at: 600, tag: 1)
    #expect(try ring.results(1) == [1: 400])
    #expect(try file.read(into: buffers.list.readable, 0..<1, skipping: 400, at: 1000) == 0)
  }

  @Test("Requests under way are waited for when the ring ends")
  func ends() throws {
    let file = try BlockFile(path: try directory.file("disk", pattern(65536)))
    let buffers = try Buffers([(0, 4096), (8192, 4096)])
    do {
      var ring = try IOUring(entries: 8)
      for tag in 0..<8 {
        _ = ring.read(file, into: buffers.list.readable, 0..<2, at: UInt64(tag * 512), tag: UInt64(tag))
      }
    }
    // Queued ones were even submitted: the last one's bytes, or an earlier one's, are there.
    let last = Array(buffers.bytes[..<16])
    #expect((0..<8).contains { Array(pattern(65536)[$0 * 512..<$0 * 512 + 16]) == last })
  }
}

@Suite("Without io_uring") struct NoIOUringTests {
  @Test("Where the kernel refuses rings the error says so, and the file's own calls still work")
  func refused() async {
    await #expect(processExitsWith: .success) {
      // No more descriptors may be opened: the one refusal every kernel knows.
      let directory = try TemporaryFolder()
      let file = try BlockFile(path: try directory.file("disk", pattern(4096)))
      let buffers = try Buffers([(0, 512)])
      try OpenFileLimit.set(64)
      var others: [EventFD] = []
      while let one = try? EventFD() { others.append(one) }
      do throws(HostError) {
        _ = try IOUring(entries: 4)
        exit(1)
      } catch {
        guard error.errno == .tooManyOpenFiles, error.call == "io_uring_setup" else { exit(2) }
      }
      guard try file.read(into: buffers.list.readable, at: 0) == 512, buffers.bytes == Array(pattern(4096)[..<512])
      else { exit(3) }
      exit(0)
    }
  }
}
