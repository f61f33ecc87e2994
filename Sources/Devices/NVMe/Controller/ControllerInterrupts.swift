import PCI
import Synchronization

/// How completion queues interrupt: by their vectors while MSI-X is enabled, else by the pin (7.5).
final class ControllerInterrupts: Sendable {
  private struct State {
    /// Whether a queue whose interrupts are enabled has entries that its driver has not taken.
    var isPending = false
    /// What INTMS and INTMC left: the pin is vector 0.
    var mask: UInt32 = 0
  }
  private let state = Mutex(State())
  private let msix: MSIX?
  private let intx: INTx

  init(_ msix: MSIX?, _ intx: INTx) {
    self.msix = msix
    self.intx = intx
  }

  /// Vectors that a completion queue may name: with the pin there is one.
  var vectorCount: Int { msix.map { $0.isEnabled ? $0.count : 1 } ?? 1 }

  /// Whether they are messages now, and the pin does not count.
  var hasMessages: Bool { msix?.isEnabled == true }

  /// New entries in a queue.
  func signal(_ vector: Int) { msix?.signal(vector) }

  /// The pin follows, unless messages are used instead.
  func setPending(_ isPending: Bool) {
    state.withLock { state in
      state.isPending = isPending
      drive(state)
    }
  }

  var mask: UInt32 { state.withLock { $0.mask } }
  func mask(_ bits: UInt32) { change { $0.mask |= bits } }
  func unmask(_ bits: UInt32) { change { $0.mask &= ~bits } }
  /// MSI-X was enabled or disabled, perhaps.
  func refresh() { change { _ in } }
  /// Nothing is pending or masked.
  func reset() { change { $0 = State() } }

  private func change(_ body: (inout State) -> Void) {
    state.withLock { state in
      body(&state)
      drive(state)
    }
  }

  private func drive(_ state: State) {
    intx.setWanted(state.isPending && state.mask & 1 == 0 && msix?.isEnabled != true)
  }
}
