/// A queue in a ring of places: what is appended first is taken first, and either costs the same however much waits.
///
/// For what waits for a peer: an array would move everything that is left at each `removeFirst`. Not thread-safe.
public struct FIFO<Element> {
  // A power of two of places, of which `count` from `head` on, around the end, hold something.
  private var places: [Element?] = []
  private var head = 0
  /// How much waits.
  public private(set) var count = 0

  /// An empty queue.
  public init() {}

  /// Whether nothing waits.
  public var isEmpty: Bool { count == 0 }

  /// The oldest, left where it is.
  public var first: Element? { count == 0 ? nil : places[head] }

  /// Appends the youngest.
  public mutating func append(_ element: Element) {
    if count == places.count { grow() }
    places[(head + count) & (places.count - 1)] = element
    count += 1
  }

  /// Takes the oldest, or nil when nothing waits.
  public mutating func popFirst() -> Element? {
    guard count > 0 else { return nil }
    let element = places[head].take()
    head = (head + 1) & (places.count - 1)
    count -= 1
    // Storage for a burst is not kept for ever.
    if count == 0, places.count > 1024 { removeAll() }
    return element
  }

  /// The `index`th oldest, from 0.
  public subscript(_ index: Int) -> Element {
    get {
      precondition(index >= 0 && index < count)
      return places[(head + index) & (places.count - 1)]!
    }
    set {
      precondition(index >= 0 && index < count)
      places[(head + index) & (places.count - 1)] = newValue
    }
  }

  /// Keeps only those that `isKept` names, in their order.
  public mutating func keep(where isKept: (Element) -> Bool) {
    var kept = FIFO()
    while let element = popFirst() {
      if isKept(element) { kept.append(element) }
    }
    self = kept
  }

  /// Takes the oldest for which `isWanted` is true, or nil; it may search all of them.
  public mutating func removeFirst(where isWanted: (Element) -> Bool) -> Element? {
    var found: Element?
    for _ in 0..<count {
      guard let element = popFirst() else { break }
      if found == nil, isWanted(element) { found = element } else { append(element) }
    }
    return found
  }

  /// Forgets everything and gives its memory back.
  public mutating func removeAll() { self = FIFO() }

  private mutating func grow() {
    var fresh: [Element?] = []
    fresh.reserveCapacity(max(16, places.count * 2))
    for i in 0..<count { fresh.append(places[(head + i) & (places.count - 1)]) }
    fresh.append(contentsOf: repeatElement(nil, count: max(16, places.count * 2) - count))
    places = fresh
    head = 0
  }
}

extension FIFO: Sendable where Element: Sendable {}
