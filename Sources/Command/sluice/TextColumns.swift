extension String {
  /// The text and as many spaces as a column of `width` takes, one at least.
  func padded(to width: Int) -> String { self + String(repeating: " ", count: max(width - count, 1)) }
}
