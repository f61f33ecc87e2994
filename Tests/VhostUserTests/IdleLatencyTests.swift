import HostIO
import Testing
import VirtioServing

@testable import VhostUserBackend

/// The machine's limit, as it is asked for.
private final class Limits {
  final class Limit {
    let limits: Limits
    init(_ limits: Limits) {
      self.limits = limits
      limits.inForce += 1
    }
    deinit { limits.inForce -= 1 }
  }
  var asked: [Int32] = []
  var inForce = 0
  var isAllowed = true

  func make(_ policy: IdleLatencyPolicy) -> IdleLatency {
    IdleLatency(policy) { (most: Int32) throws(HostError) -> AnyObject in
      self.asked.append(most)
      guard self.isAllowed else { throw HostError("open", errno: .permissionDenied, subject: "/dev/cpu_dma_latency") }
      return Limit(self)
    }
  }
}

@Suite("How long an idle processor may take to wake") final class IdleLatencyTests {
  private let limits = Limits()
  private var now = ContinuousClock.now

  private func send(_ count: Int, each: Duration, to idle: inout IdleLatency) {
    for _ in 0..<count {
      now += each
      idle.message(at: now)
    }
  }

  @Test("A limit is in force while translations come fast, and no longer")
  func fast() {
    var idle = limits.make(.limit(3))
    #expect(idle.patience == nil)
    send(63, each: .microseconds(10), to: &idle)
    #expect(limits.inForce == 0)
    send(6400, each: .microseconds(100), to: &idle)
    #expect(limits.inForce == 1 && limits.asked == [3])
    #expect(idle.patience != nil)
    // None for a while.
    idle.quiet()
    #expect(limits.inForce == 0 && idle.patience == nil)
    send(128, each: .microseconds(100), to: &idle)
    #expect(limits.inForce == 1 && idle.outcome == .used(2))
  }

  @Test("Translations that come slowly ask for none, and end one")
  func slow() {
    var idle = limits.make(.limit(0))
    send(640, each: .milliseconds(1), to: &idle)
    #expect(limits.asked.isEmpty)
    send(128, each: .microseconds(20), to: &idle)
    #expect(limits.inForce == 1)
    send(128, each: .milliseconds(1), to: &idle)
    #expect(limits.inForce == 0)
  }

  @Test("It ends soon after the last translation, even if something else keeps the thread awake")
  func busy() {
    var idle = limits.make(.limit(0))
    send(128, each: .microseconds(20), to: &idle)
    let early = idle.look(at: now + .milliseconds(10))
    #expect(!early && limits.inForce == 1)
    let late = idle.look(at: now + .milliseconds(41))
    #expect(late && limits.inForce == 0)
    // A few of them are not many.
    send(128, each: .microseconds(20), to: &idle)
    for _ in 0..<5 {
      send(1, each: .milliseconds(10), to: &idle)
      _ = idle.look(at: now)
    }
    #expect(limits.inForce == 0)
  }

  @Test("Who may not ask is told so once, and serves without")
  func refused() throws {
    limits.isAllowed = false
    var idle = limits.make(.limit(0))
    send(6400, each: .microseconds(10), to: &idle)
    #expect(limits.asked == [0] && idle.patience == nil)
    let fact = idle.fact
    #expect(fact.values["idle_latency_limited"] == .flag(false) && fact.values["idle_latency_refused"] != nil)
    #expect(fact.words.contains("/dev/cpu_dma_latency") && fact.words.contains("EACCES"))
  }

  @Test("Without a limit nothing is asked for, and that is what is said")
  func off() {
    var idle = limits.make(.off)
    send(6400, each: .microseconds(10), to: &idle)
    #expect(limits.asked.isEmpty && idle.fact.values["idle_latency_us"] == nil)
  }

  @Test(
    "The machine's own limit is in force while it is held",
    .enabled(if: (try? IdleLatencyLimit(microseconds: 1000)) != nil, "/dev/cpu_dma_latency cannot be written"))
  func machine() throws {
    // Its device answers with the lowest limit of all that hold one.
    let limit = try IdleLatencyLimit(microseconds: 7)
    let now = try #require(IdleLatencyLimit.current)
    #expect(now <= 7)
    withExtendedLifetime(limit) {}
  }
}
