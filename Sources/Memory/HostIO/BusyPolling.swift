/// How long a device's thread stays awake, looking, when it has nothing to do: notifications stay off until it goes to
/// sleep.
///
/// A driver with many requests brings the next one within microseconds. Asking it for a kick each time costs a round of
/// system calls on both sides and a change of processors, in which the driver's may be held up by a lock of its
/// machine: it gets slower, submits one request at a time, and gets a call for each. So after requests the thread polls
/// for a while. If that found nothing, some turns go without polling, twice as many after each time in a row: a driver
/// with long pauses costs nothing.
package struct BusyPolling {
  package init() {}

  /// How long to poll after the last request: about twice the time to wake a thread on another processor.
  private static let time = Duration.microseconds(50)
  private static var mostSkips: Int { 63 }

  /// Polling: the thread that waits for descriptors must not sleep.
  package private(set) var isAwake = false
  /// Until when; nil before the first turn, which decides.
  private var limit: ContinuousClock.Instant?
  /// Whether looking has found something since the last sleep.
  private var hasFound = false
  private var wasAwake = false
  private var skip = 0
  private var skips = 0

  /// To be called before a turn. True if kicks are to stay off at its end.
  package mutating func begin(isAllowed: Bool) -> Bool {
    wasAwake = isAwake
    guard isAllowed else {
      isAwake = false
      return false
    }
    if isAwake {
      if let limit, .now < limit { return true }
      isAwake = false
      skips = hasFound ? 0 : min(2 * skips + 1, Self.mostSkips)
      skip = skips
    } else if skip > 0 {
      skip -= 1
    } else {
      isAwake = true
      hasFound = false
      limit = nil
    }
    return isAwake
  }

  /// To be called after the turn.
  package mutating func end(foundWork: Bool) {
    guard isAwake else { return }
    if wasAwake, foundWork { hasFound = true }
    if foundWork || !wasAwake { limit = .now + Self.time }
  }
}
