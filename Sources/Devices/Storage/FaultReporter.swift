internal import Synchronization

/// Passes lines about failures on, at most one a second: a failing disk under load fails thousands of times.
///
/// Any thread may use it.
package final class FaultReporter: Sendable {
  private struct State {
    var next: ContinuousClock.Instant?
    var withheld = 0
  }
  private let state = Mutex(State())
  private let line: @Sendable (String) -> Void
  private let interval: Duration

  init(interval: Duration = .seconds(1), _ line: @escaping @Sendable (String) -> Void) {
    self.interval = interval
    self.line = line
  }

  /// `text` is evaluated only for a line that is passed on.
  package func report(_ text: @autoclosure () -> String) {
    let now = ContinuousClock.now
    let withheld: Int? = state.withLock { state in
      if let next = state.next, now < next {
        state.withheld += 1
        return nil
      }
      defer { state.withheld = 0 }
      state.next = now + interval
      return state.withheld
    }
    guard let withheld else { return }
    line(withheld == 0 ? text() : "\(text()) (and \(withheld) failures before it)")
  }
}
