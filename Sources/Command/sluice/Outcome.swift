import Synchronization

/// How the control thread ended: nil while all is well.
final class Outcome: Sendable {
  private let state = Mutex<String?>(nil)
  var sentence: String? { state.withLock { $0 } }
  func set(_ sentence: String) { state.withLock { $0 = sentence } }
}
