import Foundation
import Synchronization

/// A control thread that does something, such as draining a fence, while the test goes on.
public final class WorkThread: Sendable {
  private let done = NSCondition()
  private let state: StateBox

  private final class StateBox: Sendable {
    let flag = Mutex(false)
    var isDone: Bool { flag.withLock { $0 } }
  }

  public init(_ body: @escaping @Sendable () -> Void) {
    let (done, state) = (done, StateBox())
    self.state = state
    Thread.detachNewThread {
      body()
      done.lock()
      state.flag.withLock { $0 = true }
      done.broadcast()
      done.unlock()
    }
  }

  public var isDone: Bool {
    done.lock()
    defer { done.unlock() }
    return state.isDone
  }

  /// Lets others run.
  public func pause() { Thread.sleep(forTimeInterval: 0.0005) }

  /// Waits for the work to end, and says whether it did within `seconds`.
  @discardableResult public func join(seconds: Double = 20) -> Bool {
    let end = Date(timeIntervalSinceNow: seconds)
    done.lock()
    defer { done.unlock() }
    while !state.isDone {
      if !done.wait(until: end) { return state.isDone }
    }
    return true
  }
}
