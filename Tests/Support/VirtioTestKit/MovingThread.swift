public import HostIO
internal import Synchronization

extension WorkerThread {
  /// Starts a thread that runs `body` on `state`, which moves there.
  public convenience init<State: ~Copyable>(
    name: String, moving state: consuming sending State, _ body: @escaping @Sendable (consuming State) -> Void
  ) throws(HostError) {
    let parcel = Parcel(state)
    try self.init(name: name) { body(parcel.take()) }
  }
}

/// Carries a value that may be moved, not shared, through a closure: put in once, taken out once.
private final class Parcel<State: ~Copyable>: Sendable {
  private let state: Mutex<State?>

  init(_ state: consuming sending State) { self.state = Mutex(consume state) }

  func take() -> State {
    guard let taken = state.withLock({ $0.take() }) else { preconditionFailure("a parcel is opened once") }
    return taken
  }
}
