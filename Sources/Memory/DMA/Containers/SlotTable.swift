/// A fixed table of values found by small integers, for requests in flight: the index is the tag that comes back.
@safe public struct SlotTable<Element: ~Copyable>: ~Copyable {
  @usableFromInline let slots: UnsafeMutablePointer<Element?>
  @usableFromInline let free: UnsafeMutablePointer<Int>
  @usableFromInline var freeCount: Int
  public let capacity: Int

  @inlinable public init(capacity: Int) {
    precondition(capacity > 0)
    self.capacity = capacity
    // Safe: both arrays have `capacity` elements, initialised here, ended in deinit.
    unsafe slots = .allocate(capacity: capacity)
    unsafe free = .allocate(capacity: capacity)
    for i in 0..<capacity {
      unsafe (slots + i).initialize(to: nil)
      unsafe (free + i).initialize(to: capacity - 1 - i)
    }
    freeCount = capacity
  }

  @inlinable deinit {
    unsafe slots.deinitialize(count: capacity)
    unsafe slots.deallocate()
    unsafe free.deallocate()
  }

  @inlinable public var isFull: Bool { freeCount == 0 }
  @inlinable public var count: Int { capacity - freeCount }

  /// The index that the next ``insert(_:)`` returns. Traps when full.
  @inlinable public var nextIndex: Int {
    precondition(freeCount > 0)
    // Safe: as in insert.
    return unsafe free[freeCount - 1]
  }

  /// Stores a value and returns its index. Traps when full: ask ``isFull`` first.
  @inlinable public mutating func insert(_ value: consuming Element) -> Int {
    precondition(freeCount > 0)
    freeCount -= 1
    // Safe: indices in `free` are below capacity.
    let index = unsafe free[freeCount]
    unsafe slots[index] = consume value
    return index
  }

  /// Takes a value out, or nil when nothing is there.
  @inlinable public mutating func remove(_ index: Int) -> Element? {
    guard index >= 0, index < capacity else { return nil }
    // Safe: checked just now.
    guard let value = unsafe slots[index].take() else { return nil }
    unsafe free[freeCount] = index
    freeCount += 1
    return value
  }

  /// Works on a value in place. False when nothing is there.
  public mutating func update(_ index: Int, _ body: (inout Element) -> Void) -> Bool {
    guard index >= 0, index < capacity else { return false }
    // Safe: checked just now.
    guard var value = unsafe slots[index].take() else { return false }
    body(&value)
    unsafe slots[index] = consume value
    return true
  }
}
