internal import HostIO
internal import Synchronization

/// Notifies the front-end that the dirty log changed, if it passed a descriptor for that (SET_LOG_FD). From any thread;
/// nothing waits.
final class DirtyLogNotifier: Sendable {
  private let event = Mutex<EventFD?>(nil)

  /// The descriptor to signal from now on, or none.
  func set(_ event: EventFD?) { self.event.withLock { $0 = event } }

  func signal() { event.withLock { $0 }?.signal() }
}
