public import DMA
public import HostIO
import Synchronization
public import Virtio

/// Everything a queue needs to run.
public struct QueueStart: Sendable {
  /// Which of the device's queues.
  public var index: Int
  /// Where its ring is.
  public var layout: QueueLayout
  /// What the driver negotiated.
  public var features: Features
  /// What its addresses mean: chosen by the negotiated features, see `AddressPath`.
  public var space: any DMASpace
  /// Signalled by the driver's side when buffers are available; nil when kicks come through ``DeviceRunner/kick(_:)``.
  public var kick: EventFD?
  /// Where to go on.
  public var state: QueueState
  /// Makes the recorder of chains in flight; called on the queue's thread.
  public var inflight: (@Sendable () -> sending any InflightRecorder)?

  public init(
    index: Int, layout: QueueLayout, features: Features, space: any DMASpace, kick: EventFD?,
    state: QueueState = .initial,
    inflight: (@Sendable () -> sending any InflightRecorder)? = nil
  ) {
    self.index = index
    self.layout = layout
    self.features = features
    self.space = space
    self.kick = kick
    self.state = state
    self.inflight = inflight
  }
}

/// Receives a device's errors. Called on queue threads; must not wait for them.
public protocol DeviceEvents: Sendable {
  /// A queue stopped for good: the driver broke its rules, and only a reset recovers it (§2.1.2, DEVICE_NEEDS_RESET).
  func needsReset(_ index: Int, _ error: QueueError)
  /// The driver's side kicked a queue for the second time since it was started: the first time may be a front-end that
  /// makes sure.
  func secondKick(_ index: Int)
}

extension DeviceEvents {
  public func secondKick(_ index: Int) {}
}

/// Where used buffer notifications of a queue go. Control threads may change it while the queue runs, whose thread has
/// a ``QueueCaller``.
final class QueueCall: Sendable {
  // A struct around the closure, which a mutex over the closure itself would wrap anew on each access: calls became
  // slower one by one, and in the end overflowed the stack.
  fileprivate struct Target {
    var action: (@Sendable () -> Void)?
  }
  private let target = Mutex(Target())
  /// Changes with the target.
  fileprivate let version = Atomic<UInt64>(1)

  func set(_ action: (@Sendable () -> Void)?) {
    target.withLock {
      $0.action = action
      version.add(1, ordering: .releasing)
    }
  }

  func signal() { current.target.action?() }

  fileprivate var current: (target: Target, version: UInt64) {
    target.withLock { ($0, version.load(ordering: .relaxed)) }
  }
}

/// A queue thread's copy of a ``QueueCall``'s target. A call takes no lock, but for the first one after a change.
struct QueueCaller {
  private let call: QueueCall
  private var target = QueueCall.Target()
  private var version: UInt64 = 0

  init(_ call: QueueCall) { self.call = call }

  mutating func signal() {
    if call.version.load(ordering: .acquiring) != version { (target, version) = call.current }
    target.action?()
  }
}

/// Wakes one queue: the translation that it waits for arrived, or it is kicked without an eventfd.
final class QueueBell: TranslationWaiter {
  private let rung = Atomic<Bool>(false)
  private let wakeUp: EventFD

  init(_ wakeUp: EventFD) { self.wakeUp = wakeUp }

  func wake() {
    if !rung.exchange(true, ordering: .acquiringAndReleasing) { wakeUp.signal() }
  }

  /// Whether it was rung since the last question.
  func take() -> Bool { rung.exchange(false, ordering: .acquiringAndReleasing) }
}
