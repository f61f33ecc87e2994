import Foundation
import Glibc
import HostIO
import Synchronization
import Testing
import VirtioTestKit

@Suite("Descriptors and waiting") struct WaitingTests {
  @Test("An error says what was tried, on what, and why")
  func description() {
    let error = HostError("open", errno: .noSuchFileOrDirectory, subject: "/disk")
    #expect(error.description == "open /disk: No such file or directory (ENOENT)")
    #expect(HostError("x", errno: Errno(rawValue: 4000)).description == "x: error 4000")
  }

  @Test("A descriptor closes with its owner, once")
  func closes() throws {
    let number: Int32
    do {
      let first = try MemoryFile(name: "first", size: 1).intoDescriptor()
      number = first.rawValue
      #expect(fcntl(number, F_GETFD) == FD_CLOEXEC)
      let second = try FileDescriptor.duplicating(first.rawValue)
      #expect(second.rawValue != number)
    }
    // Other tests open descriptors meanwhile, so the number may live again; but not as this file.
    let name = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/\(number)")
    #expect(name?.contains("memfd:first") != true)
  }

  @Test("Signals add up and drain at once")
  func eventCounts() throws {
    let event = try EventFD()
    #expect(try !event.wait(timeout: .zero))
    #expect(event.signal() && event.signal() && event.signal())
    #expect(try event.wait(timeout: .zero))
    #expect(try event.drain() == 3)
    #expect(try event.drain() == 0)
  }

  @Test("A full counter neither blocks nor loses the signal")
  func fullCounter() throws {
    let event = try EventFD()
    // One less than the counter's largest value.
    try FileHandle(fileDescriptor: event.rawValue).write(contentsOf: Data((UInt64.max - 1).bytes))
    #expect(event.signal())
    let count = try event.drain()
    #expect(count > 0)
  }

  @Test(
    "A counter that a peer has filled, or emptied, and made blocking again holds nothing up", .timeLimit(.minutes(10)))
  func blockingAgain() throws {
    let peer = try EventFD()
    let event = try EventFD(adopting: .duplicating(peer.rawValue))
    #expect(fcntl(peer.rawValue, F_SETFL, 0) == 0)
    #expect(try event.drain() == 0)
    try FileHandle(fileDescriptor: peer.rawValue).write(contentsOf: Data((UInt64.max - 1).bytes))
    #expect(event.signal())
    #expect(try event.drain() > 0)
    #expect(event.signal())
    #expect(try event.drain() == 1)
  }

  @Test(
    "A peer that makes its empty counter blocking in just the moment in which it is drained holds nothing up",
    .timeLimit(.minutes(10)))
  func blockingMeanwhile() throws {
    let peer = try EventFD()
    let event = try EventFD(adopting: .duplicating(peer.rawValue))
    let isOver = Shared(Atomic(false))
    let toggling = try WorkerThread(name: "peer") {
      while !isOver.value.load(ordering: .relaxed) {
        _ = fcntl(peer.rawValue, F_SETFL, 0)
        _ = fcntl(peer.rawValue, F_SETFL, O_NONBLOCK)
      }
    }
    let drained = try EventFD()
    // The moment is a short one: about one drain of a hundred thousand meets it.
    let end = ContinuousClock.now + .seconds(2)
    let draining = try WorkerThread(name: "drain") {
      while ContinuousClock.now < end { _ = try? event.drain() }
      drained.signal()
    }
    #expect(try drained.wait(timeout: .seconds(30)))
    // A thread that hangs is released, so that the test ends with either result.
    isOver.value.store(true, ordering: .relaxed)
    toggling.join()
    _ = fcntl(peer.rawValue, F_SETFL, O_NONBLOCK)
    while try !drained.wait(timeout: .milliseconds(1)) { peer.signal() }
    draining.join()
  }

  @Test("A pipe passed as an eventfd wakes, and its end is an error instead of eternal readiness")
  func pipeAsEvent() throws {
    let pipe = Pipe()
    let event = try EventFD(adopting: .duplicating(pipe.fileHandleForReading.fileDescriptor))
    #expect(!event.signal())
    #expect(try event.drain() == 0)
    try pipe.fileHandleForWriting.write(contentsOf: Data([1, 2, 3]))
    #expect(try event.drain() == 1)
    try pipe.fileHandleForWriting.close()
    expect(EPIPE) { try event.drain() }
  }

  @Test("On a worker thread, signalling into a pipe without a reader does not end the process")
  func brokenPipe() async {
    await #expect(processExitsWith: .exitCode(7)) {
      let pipe = Pipe()
      let event = try EventFD(adopting: .duplicating(pipe.fileHandleForWriting.fileDescriptor))
      try pipe.fileHandleForReading.close()
      let delivered = Shared(Atomic(true))
      let thread = try WorkerThread(name: "broken") { delivered.value.store(event.signal(), ordering: .relaxed) }
      thread.join()
      exit(delivered.value.load(ordering: .relaxed) ? 8 : 7)
    }
  }

  @Test("Anywhere else that takes having said so")
  func ignoredPipe() async {
    await #expect(processExitsWith: .exitCode(7)) {
      try SignalFD.ignoreBrokenPipes()
      let pipe = Pipe()
      let event = try EventFD(adopting: .duplicating(pipe.fileHandleForWriting.fileDescriptor))
      try pipe.fileHandleForReading.close()
      exit(event.signal() ? 8 : 7)
    }
  }

  @Test("A poller names what is ready by token, and sleeps when nothing is")
  func poll() throws {
    let poller = try Poller()
    let events = try (0..<3).map { _ in try EventFD() }
    for (i, event) in events.enumerated() { try poller.add(event, token: UInt64(100 + i)) }
    var ready = ReadySet()
    try poller.wait(into: &ready, timeout: .milliseconds(1))
    #expect(ready.count == 0)
    events[1].signal()
    try poller.wait(into: &ready)
    let (count, token, readiness) = (ready.count, ready.token(0), ready.readiness(0))
    #expect(count == 1 && token == 101 && readiness == .readable)
    // Level-triggered until drained.
    try poller.wait(into: &ready, timeout: .zero)
    #expect(ready.count == 1)
    try events[1].drain()
    try poller.remove(events[2].rawValue)
    events[2].signal()
    try poller.wait(into: &ready, timeout: .zero)
    #expect(ready.count == 0)
  }

  @Test("Watched for edges, an eventfd needs no draining")
  func edge() throws {
    let poller = try Poller()
    let event = try EventFD()
    try poller.add(event.rawValue, token: 7, for: [.readable, .edge])
    var ready = ReadySet()
    for _ in 0..<3 {
      event.signal()
      let first = try poller.wait(into: &ready, timeout: .seconds(5))
      let second = try poller.wait(into: &ready, timeout: .zero)
      #expect(first == 1 && second == 0)
    }
  }

  @Test("More ready descriptors than fit come with the next wait")
  func manyReady() throws {
    let poller = try Poller()
    let events = try (0..<100).map { _ in try EventFD() }
    for (i, event) in events.enumerated() {
      try poller.add(event, token: UInt64(i))
      event.signal()
    }
    var seen = Set<UInt64>()
    var ready = ReadySet()
    while try poller.wait(into: &ready, timeout: .zero) > 0 {
      for i in ready.indices {
        seen.insert(ready.token(i))
        try events[Int(ready.token(i))].drain()
      }
    }
    #expect(seen == Set(0..<100))
  }

  @Test("A regular file cannot be watched, and a descriptor not twice")
  func refusals() throws {
    let directory = try TemporaryFolder()
    let file = try #require(FileHandle(forReadingAtPath: try directory.file("f", [1])))
    let poller = try Poller()
    expect(EPERM) { try poller.add(file.fileDescriptor, token: 1) }
    let event = try EventFD()
    try poller.add(event, token: 1)
    expect(EEXIST) { try poller.add(event, token: 2) }
    try poller.modify(event.rawValue, token: 3, for: .writable)
    var ready = ReadySet()
    try poller.wait(into: &ready, timeout: .zero)
    let (token, readiness) = (ready.token(0), ready.readiness(0))
    #expect(token == 3 && readiness == .writable)
  }

  @Test("A wait ends at its time, not before")
  func timeout() throws {
    let poller = try Poller()
    var ready = ReadySet()
    let start = ContinuousClock.now
    let count = try poller.wait(into: &ready, timeout: .milliseconds(30))
    #expect(count == 0)
    #expect(ContinuousClock.now - start >= .milliseconds(30))
  }

  @Test("A timer fires and repeats, until it is armed anew")
  func timer() throws {
    let timer = try TimerFD()
    let poller = try Poller()
    try poller.add(timer.rawValue, token: 1)
    var ready = ReadySet()
    try timer.arm(after: .milliseconds(1), repeating: .milliseconds(1))
    for _ in 0..<3 {
      let count = try poller.wait(into: &ready, timeout: .seconds(5))
      let expired = try timer.drain()
      #expect(count == 1 && expired >= 1)
    }
    try timer.arm(after: .zero)
    let soon = try poller.wait(into: &ready, timeout: .seconds(5))
    #expect(soon == 1)
  }

  @Test("A signal is read instead of interrupting")
  func signals() throws {
    let result = Shared(Mutex<[Int32?]>([]))
    let thread = try WorkerThread(name: "signals") {
      let signals = try? SignalFD([SIGUSR1, SIGUSR2])
      let before = try? signals?.next()
      raise(SIGUSR2)
      let after = try? signals?.next()
      result.value.withLock { $0 = [before, after] }
    }
    thread.join()
    #expect(result.value.withLock { $0 } == [nil, SIGUSR2])
    expect(EINVAL) { _ = try SignalFD([65]) }
  }
}

/// A noncopyable value two closures look at.
final class Shared<Value: ~Copyable & Sendable>: Sendable {
  let value: Value
  init(_ value: consuming Value) { self.value = value }
}
