internal import HostIO
internal import PCI
internal import Synchronization

/// Whether a client may map doorbells.
public enum DoorbellPolicy: String, Hashable, Sendable, CaseIterable {
  /// Each doorbell is a message, which wakes the server.
  case messages
  /// They are in memory that the client maps. Nothing wakes the server, so it looks: all the time while they come, and
  /// once in ``longestRest`` when none has come for long.
  case shared

  /// How late a doorbell in memory is noticed at most, but for what the host's scheduler adds.
  public static var longestRest: Duration { .milliseconds(1) }
}

/// Looks at a ``DoorbellPage`` for as long as it lives: a thread that stays awake for some microseconds after each
/// doorbell, and then sleeps for longer and longer. A client that rings without pause keeps it busy, as it would with
/// messages.
final class DoorbellWatch: Sendable {
  let page: DoorbellPage
  private let stopping: EventFD
  private let thread: WorkerThread
  /// How long it stays awake after a doorbell.
  private static let wakefulness = Duration.microseconds(50)
  private static let shortestRest = Duration.microseconds(20)

  init(_ page: DoorbellPage) throws(HostError) {
    let stopping = try EventFD()
    self.page = page
    self.stopping = stopping
    thread = try WorkerThread(name: "doorbells") {
      var lastNews = ContinuousClock.now
      var rest = Self.shortestRest
      // A wait that fails would fail for ever.
      while (try? stopping.wait(timeout: .zero)) == false {
        if page.look() {
          lastNews = .now
          rest = Self.shortestRest
        } else if ContinuousClock.now - lastNews < Self.wakefulness {
          WorkerThread.yield()
        } else {
          if (try? stopping.wait(timeout: rest)) != false { return }
          rest = min(rest * 2, DoorbellPolicy.longestRest)
        }
      }
    }
  }

  /// Ends it, and returns when nothing is brought to the function any more.
  func end() {
    stopping.signal()
    thread.join()
  }

  /// Processor time so far.
  var cpuTime: Duration { thread.cpuTime }
}
