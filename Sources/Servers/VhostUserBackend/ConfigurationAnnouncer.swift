internal import Synchronization
internal import VhostUser

/// Notifies the front-end of a changed configuration space (§2.5), once that is allowed.
///
/// Without CONFIG there is no such message. While every ring is stopped the device is suspended and sends nothing: the
/// message waits for the first ring to start.
final class ConfigurationAnnouncer: Sendable {
  private struct State {
    var isWanted = false
    var isSuspended = true
    var isWaiting = false
  }
  private let state = Mutex(State())
  private let channel: BackendChannel

  init(channel: BackendChannel) { self.channel = channel }

  /// The configuration changed. From any thread.
  func announce() {
    let isDue = state.withLock { state in
      guard state.isWanted else { return false }
      state.isWaiting = state.isSuspended
      return !state.isSuspended
    }
    if isDue { _ = channel.send(.configurationChange, awaiting: nil) }
  }

  /// Whether the front-end negotiated CONFIG and BACKEND_REQ.
  func setWanted(_ isWanted: Bool) { state.withLock { $0.isWanted = isWanted } }

  /// Whether no ring runs.
  func setSuspended(_ isSuspended: Bool) {
    let isDue = state.withLock { state in
      state.isSuspended = isSuspended
      guard state.isWaiting, !isSuspended else { return false }
      state.isWaiting = false
      return true
    }
    if isDue { _ = channel.send(.configurationChange, awaiting: nil) }
  }
}
