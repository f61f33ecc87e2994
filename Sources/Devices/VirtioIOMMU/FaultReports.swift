internal import HostIO
internal import Synchronization
internal import Virtio

/// Faults on their way to the event queue: at most 256 wait, and so many a second are taken; others are counted and
/// dropped, so that a storm affects only its own endpoint (R093).
///
/// Any thread reports, without waiting; the event queue's thread takes.
final class FaultReports: Sendable {
  private struct State {
    var waiting: [IOMMUFault]
    var first = 0
    var count = 0
    /// The second that is running, and reports taken in it.
    var second: ContinuousClock.Instant?
    var inSecond = 0
    var dropped: UInt64 = 0
  }
  private let state: Mutex<State>
  private let maxPerSecond: Int
  /// Signalled when there is something to take and there was nothing.
  let arrived: EventFD
  static var capacity: Int { 256 }

  init(maxPerSecond: Int) throws(HostError) {
    self.maxPerSecond = maxPerSecond
    arrived = try EventFD()
    // All the room there will ever be.
    let none = IOMMUFault(reason: .unknown, flags: [], endpoint: 0, address: 0)
    state = Mutex(State(waiting: Array(repeating: none, count: Self.capacity)))
  }

  func report(_ fault: IOMMUFault) {
    let now = ContinuousClock.now
    let isFirst = state.withLock { state in
      if state.second.map({ now - $0 >= .seconds(1) }) ?? true {
        state.second = now
        state.inSecond = 0
      }
      guard state.count < Self.capacity, state.inSecond < maxPerSecond else {
        state.dropped &+= 1
        return false
      }
      state.inSecond += 1
      state.waiting[(state.first + state.count) % Self.capacity] = fault
      state.count += 1
      return state.count == 1
    }
    if isFirst { arrived.signal() }
  }

  /// Whether nothing waits.
  var isEmpty: Bool { state.withLock { $0.count == 0 } }
  /// Reports dropped so far.
  var dropped: UInt64 { state.withLock { $0.dropped } }

  /// The oldest, which waits no more.
  func take() -> IOMMUFault? {
    state.withLock { state in
      guard state.count > 0 else { return nil }
      defer {
        state.first = (state.first + 1) % Self.capacity
        state.count -= 1
      }
      return state.waiting[state.first]
    }
  }

  /// Forgets what waits.
  func clear() { state.withLock { $0.count = 0 } }
}
