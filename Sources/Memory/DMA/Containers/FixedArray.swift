/// An array of noncopyable values whose length is fixed when it is made.
@safe public struct FixedArray<Element: ~Copyable>: ~Copyable {
  @usableFromInline let elements: UnsafeMutablePointer<Element>
  public let count: Int

  /// Calls `make` for each index in turn.
  public init(count: Int, _ make: (Int) -> Element) {
    precondition(count >= 0)
    self.count = count
    // Safe: `count` elements, all initialised here, ended in deinit.
    unsafe elements = .allocate(capacity: max(count, 1))
    for i in 0..<count { unsafe (elements + i).initialize(to: make(i)) }
  }

  deinit {
    unsafe elements.deinitialize(count: count)
    unsafe elements.deallocate()
  }

  @inlinable public subscript(_ index: Int) -> Element {
    _read {
      precondition(index >= 0 && index < count)
      // Safe: checked just now.
      yield unsafe elements[index]
    }
    _modify {
      precondition(index >= 0 && index < count)
      // Safe: checked just now.
      yield unsafe &elements[index]
    }
  }
}
