internal import DMA

/// A queue's access that met pages it had to ask for: a chain, or the ring itself. It lasts from the first question
/// until the access was made or given up, however often the chain is walked meanwhile. What it asked, and what was
/// refused to it, is its own and ends with it.
final class MissWalk {
  typealias Key = PendingMisses.Key

  /// Woken when nothing that the walk waits for is open any more. Nil for a look-up outside a queue, which asks without
  /// a limit and is never ended.
  let waiter: (any TranslationWaiter)?
  /// Questions that it waits for, its own and those of others that it joined.
  var open = 0
  /// It could not ask for all it wants, for want of room, and stands in line for some.
  var isStarving = false
  /// It was woken because there is room for it now, and has not walked since.
  var isInvited = false
  /// How often the table was full and was emptied for a page of this walk.
  var evictions = 0
  var hasEnded = false

  /// Refusals that the walk under way finds, and those that came since it began, or it asked for. Each serves one walk:
  /// the chain remembers what it found.
  private var known: Set<Key> = []
  private var fresh: Set<Key> = []
  private var isUnderWay = false
  /// Refusals that are kept for look-ups that no queue makes: these never end.
  private static let limit = 4096

  init(_ waiter: (any TranslationWaiter)?) { self.waiter = waiter }

  /// Whether the walk learns that `key` was refused.
  func finds(_ key: Key) -> Bool {
    if !isUnderWay {
      isUnderWay = true
      known = fresh
      fresh = []
    }
    return known.contains(key) || fresh.contains(key)
  }

  /// The walk is over, and will be made again.
  func pause() { if waiter != nil { isUnderWay = false } }

  func refuse(_ key: Key) {
    if waiter == nil, fresh.count >= Self.limit { fresh = [] }
    fresh.insert(key)
  }

  /// Mappings changed in pages `first` through `last`: refusals there are history.
  func forget(_ pages: ClosedRange<UInt64>) {
    Self.remove(pages, &known)
    Self.remove(pages, &fresh)
  }

  private static func remove(_ pages: ClosedRange<UInt64>, _ keys: inout Set<Key>) {
    guard !keys.isEmpty else { return }
    if pages.upperBound - pages.lowerBound < 8 {
      for page in pages {
        for access in [DMAAccess.read, .write] { keys.remove(Key(page: page, access)) }
      }
    } else {
      keys = keys.filter { !pages.contains($0.page) }
    }
  }

  /// Refusals that are kept.
  var refusals: Int { known.count + fresh.count }
}
