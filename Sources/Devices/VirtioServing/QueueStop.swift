internal import Virtio

/// What happens to a queue's chains when it stops. Nothing new is taken from its ring in any case.
public enum StopManner: Hashable, Sendable {
  /// All are done, those included that a predecessor left in the in-flight record, though they may need translations.
  case finishing
  /// Those under way are done. What a predecessor left, and was not begun here, stays in the record.
  case leavingReplays
  /// What is not done yet stays in the record, as far as it can be called off. Without a record as ``finishing``.
  case handingOver
}

/// A queue that is stopping: ``DeviceRunner/beginStop(_:_:notifying:)``.
///
/// After the runner's patience, ten seconds, what can be called off is, and what waits for a translation stays in the
/// in-flight record; so a stop waits longer only for a host that does not end what it has begun.
public struct QueueStop: Sendable {
  /// Which queue.
  public let index: Int
  let answer: Answer<QueueState?>

  /// Whether the queue stands still, so that ``DeviceRunner/endStop(_:)`` does not wait for it.
  public var isOver: Bool { answer.value != nil }
}
