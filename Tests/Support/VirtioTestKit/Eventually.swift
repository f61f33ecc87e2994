import Glibc
public import HostIO

/// Waits until `condition` holds. False when it does not within the time.
///
/// - Parameters:
///   - event: looks again whenever this is signalled.
///   - interval: looks again after this, for what no event tells of.
public func eventually(
  within time: Duration = .seconds(20), on event: EventFD? = nil, every interval: Duration = .milliseconds(1),
  _ condition: () throws -> Bool
) rethrows -> Bool {
  let end = ContinuousClock.now + time
  while try !condition() {
    guard ContinuousClock.now < end else { return false }
    if let event {
      if (try? event.wait(timeout: interval)) == true { _ = try? event.drain() }
    } else {
      usleep(UInt32(interval / .microseconds(1)))
    }
  }
  return true
}
