internal import Synchronization

/// How many questions the walk of one queue may ask: kept by ``PendingMisses`` under its owner's lock, and read without
/// it.
///
/// A walk reads it after each page that it has to wait for. So a walk that may ask no more ends there, and does not
/// take the lock for every page that is left of its chain, which would delay the thread that takes the answers.
final class MissQuota: Sendable {
  private let questions = Atomic<Int>(PendingMisses.openPerQueue)

  /// A queue's part, or 0 while all together have as many questions open as they may.
  var left: Int { questions.load(ordering: .relaxed) }

  func set(_ count: Int) { questions.store(count, ordering: .relaxed) }
}
