import Foundation
import HostIO
import Synchronization
import Testing
import VirtioTestKit

/// Something only one owner can have, and no other thread may.
private struct Ring: ~Copyable {
  var numbers: [Int]
  let done: EventFD
  deinit { done.signal() }
}

private final class Handler {
  var count = 0
}

@Suite("Worker threads") struct WorkerThreadTests {
  @Test("A noncopyable state moves into the thread and ends there")
  func moves() throws {
    let done = try EventFD()
    let sum = Shared(Atomic(0))
    let ring = Ring(numbers: Array(1...10), done: done)
    let thread = try WorkerThread(name: "mover", moving: ring) { ring in
      var ring = ring
      while let last = ring.numbers.popLast() { sum.value.add(last, ordering: .relaxed) }
    }
    thread.join()
    #expect(sum.value.load(ordering: .relaxed) == 55)
    #expect(try done.drain() == 1)
    #expect(thread.isFinished)
    // Joining again returns at once.
    thread.join()
  }

  @Test("A closure with an object that is not Sendable is sent along")
  func sends() throws {
    let result = Shared(Atomic(0))
    let handler = Handler()
    handler.count = 41
    let thread = try WorkerThread(name: "sender") {
      handler.count += 1
      result.value.store(handler.count, ordering: .relaxed)
    }
    thread.join()
    #expect(result.value.load(ordering: .relaxed) == 42)
  }

  @Test("The thread carries its name, blocks every signal but its own faults, and counts its processor time")
  func facts() throws {
    let (go, up) = (try EventFD(), try EventFD())
    let status = Shared(Mutex(""))
    let thread = try WorkerThread(name: "blk0 queue 1 and more") {
      status.value.withLock { $0 = (try? String(contentsOfFile: "/proc/thread-self/status", encoding: .utf8)) ?? "" }
      let end = ContinuousClock.now + .milliseconds(20)
      while ContinuousClock.now < end {}
      up.signal()
      _ = try? go.wait(timeout: .seconds(10))
    }
    #expect(try up.wait(timeout: .seconds(10)))
    let during = thread.cpuTime
    #expect(during > .zero)
    go.signal()
    thread.join()
    #expect(thread.cpuTime >= during)
    #expect(thread.cpuTime < .seconds(5))
    let text = status.value.withLock { $0 }
    #expect(text.contains("blk0 queue 1 an\n"))
    let blocked = try #require(text.split(separator: "\n").first { $0.hasPrefix("SigBlk:") }).suffix(16)
    // All but KILL, STOP, the two the C library keeps to itself, and a thread's own faults (ILL, TRAP, ABRT, BUS, FPE,
    // SEGV, SYS).
    let mask = try #require(UInt64(blocked, radix: 16))
    #expect(mask & 0x7fff_ffff == 0x3ffb_fa07)
  }

  @Test("A thread that is never joined still runs to its end")
  func detached() throws {
    let done = try EventFD()
    _ = try WorkerThread(name: "detached") { done.signal() }
    #expect(try done.wait(timeout: .seconds(10)))
  }

  @Test("A thread that waits for itself is a mistake that traps")
  func selfJoin() async {
    await #expect(processExitsWith: .failure) {
      let box = Shared(Mutex<WorkerThread?>(nil))
      let go = try EventFD()
      let thread = try WorkerThread(name: "self") {
        _ = try? go.wait()
        box.value.withLock { $0 }?.join()
      }
      box.value.withLock { $0 = thread }
      go.signal()
      thread.join()
    }
  }
}
