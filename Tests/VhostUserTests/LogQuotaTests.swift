import Logging
import Synchronization
import Testing
import VirtioServing
import VirtioTestKit

@Suite("A log that a peer cannot fill") struct LogQuotaTests {
  private let limited = Limited()

  /// A limited log whose time stands still.
  private final class Limited: Sendable {
    let lines = LogLines()
    let log: LimitedLog
    private let time: Clock

    private final class Clock: Sendable {
      let now = Mutex(ContinuousClock.now)
    }

    init() {
      let time = Clock()
      self.time = time
      log = LimitedLog(lines.logger) { time.now.withLock { $0 } }
    }

    func pass(_ duration: Duration) { time.now.withLock { $0 += duration } }

    /// Says the same so many times, and returns what came of it.
    func flood(_ count: Int = 1000) -> [String] {
      let before = lines.all.count
      for number in 0..<count { log.logger.warning("number \(number)") }
      return Array(lines.all.dropFirst(before))
    }
  }

  @Test("Of one kind 16 lines are told in ten seconds, then how many were left out; other kinds are told meanwhile")
  func leftOut() {
    #expect(limited.flood() == (0..<LogQuota.lines).map { "number \($0)" })
    limited.log.logger.notice("another kind")
    #expect(limited.lines.all.last == "another kind")
    limited.pass(LogQuota.interval)
    limited.log.logger.info("a third kind")
    #expect(limited.lines.all.suffix(2) == ["984 lines left out, the last of them: number 999", "a third kind"])
  }

  @Test("The count of what was left out is told at the end, once")
  func settled() {
    _ = limited.flood(18)
    limited.log.settle()
    limited.log.settle()
    #expect(limited.lines.all.count == LogQuota.lines + 1)
    #expect(limited.lines.all.last == "2 lines left out, the last of them: number 17")
  }

  @Test("A flood that goes on for a day is told in few lines, and one that has ended is forgotten")
  func longer() {
    for _ in 0..<(24 * 360) {
      _ = limited.flood(20)
      limited.pass(.seconds(10))
    }
    // Ten minutes a while: 144 a day, with 16 lines and a count each.
    #expect(limited.lines.all.count < 160 * (LogQuota.lines + 1), "\(limited.lines.all.count)")
    limited.pass(LogQuota.longest)
    limited.log.logger.info("a third kind")
    limited.pass(LogQuota.longest)
    #expect(limited.flood().count == LogQuota.lines)
    limited.pass(LogQuota.interval)
    #expect(limited.flood().count == LogQuota.lines + 1, "the short while again")
  }

  @Test("Lines of debugging are not limited")
  func debugging() {
    let lines = LogLines()
    var logger = lines.logger
    logger.logLevel = .debug
    let log = LimitedLog(logger)
    for _ in 0..<100 { log.logger.debug("all of them") }
    #expect(lines.all.count == 100)
  }
}
