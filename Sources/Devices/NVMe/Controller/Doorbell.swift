import Synchronization

/// A doorbell register, and whether there is a queue behind it. Processors' threads ring it, the controller's thread
/// looks.
final class Doorbell: Sendable {
  /// What became of a write.
  enum Outcome { case taken, noQueue, badValue }

  /// Entries of the queue; 0: there is none.
  private let size = Atomic<UInt32>(0)
  private let value = Atomic<UInt32>(0)

  func ring(_ new: UInt32) -> Outcome {
    let size = size.load(ordering: .acquiring)
    guard size > 0 else { return .noQueue }
    guard new < size else { return .badValue }
    value.store(new, ordering: .releasing)
    return .taken
  }

  /// A queue of so many entries, empty.
  func open(_ entries: Int) {
    value.store(0, ordering: .relaxed)
    size.store(UInt32(entries), ordering: .releasing)
  }

  func close() { size.store(0, ordering: .releasing) }

  /// What was written last. It may have been meant for a queue that was here before: every reader checks it.
  var current: Int { Int(value.load(ordering: .acquiring)) }
}
