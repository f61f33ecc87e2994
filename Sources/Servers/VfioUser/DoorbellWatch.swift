internal import HostIO
internal import PCI
internal import Synchronization

/// Whether a client may map doorbells.
public enum DoorbellPolicy: String, Hashable, Sendable, CaseIterable {
  /// Each doorbell is a message, which wakes the server.
  case messages
  /// They are in memory that the client maps. Nothing wakes the server, so it looks: all the time while they come, and
  /// then less and less often, up to ``longestRest`` apart.
  case shared

  /// How late a doorbell in memory is noticed at most, but for what the host's scheduler adds; and no later than an
  /// eighth of the time since the one before.
  public static var longestRest: Duration { .milliseconds(4) }
}

/// Looks at a ``DoorbellPage`` until ``end()``: a thread that stays awake for some microseconds after each doorbell, and
/// then sleeps for an eighth of the time since. A client that rings without pause keeps it busy, as it would with
/// messages.
final class DoorbellWatch: Sendable {
  let page: DoorbellPage
  private let stopping: EventFD
  private let thread: WorkerThread
  /// How long it stays awake after a doorbell.
  private static let wakefulness = Duration.microseconds(50)

  init(_ page: DoorbellPage) throws(HostError) {
    let stopping = try EventFD()
    self.page = page
    self.stopping = stopping
    thread = try WorkerThread(name: "doorbells") {
      var lastNews = ContinuousClock.now
      var rest = Duration.zero
      // A wait that fails would fail for ever.
      while (try? stopping.wait(timeout: rest)) == false {
        rest = .zero
        if page.look() {
          lastNews = .now
          continue
        }
        let quiet = ContinuousClock.now - lastNews
        if quiet < Self.wakefulness {
          WorkerThread.yield()
        } else {
          rest = min(quiet / 8, DoorbellPolicy.longestRest)
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
