/// How long a driver waits for its device: so many looks, and what to do between two of them. There is no clock down
/// here.
public struct BoundedWait {
  /// Looks, at least 1.
  public var attempts: Int
  /// Called after a look in vain: a pause instruction, a yield, or a wait for an interrupt that ends by itself.
  public var pause: () -> Void

  /// A million looks one after the other, unless said otherwise.
  public init(attempts: Int = 1_000_000, pause: @escaping () -> Void = {}) {
    self.attempts = attempts
    self.pause = pause
  }

  /// Looks until `condition` holds. False: it never did.
  public func until<Failure: Error>(_ condition: () throws(Failure) -> Bool) throws(Failure) -> Bool {
    for attempt in 0..<max(attempts, 1) {
      if try condition() { return true }
      if attempt + 1 < attempts { pause() }
    }
    return false
  }
}
