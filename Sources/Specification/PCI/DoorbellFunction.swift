/// Registers of a function in which its driver only leaves numbers: the same happens whether a write reaches the
/// function, or is left in memory and brought to it later, the last one for each register. Four bytes each, one after
/// the other, in whole pages of a BAR where nothing else is. Reading them tells nothing.
public struct DoorbellArea: Hashable, Sendable {
  /// The BAR, 0...5.
  public var bar: Int
  /// Where in the BAR the first register is: a multiple of 4096.
  public var offset: UInt64
  /// Registers.
  public var count: Int

  public init(bar: Int, offset: UInt64, count: Int) {
    (self.bar, self.offset, self.count) = (bar, offset, count)
  }

  /// Bytes of the pages.
  public var byteCount: UInt64 { (4 * UInt64(count) + 4095) & ~4095 }
}

/// A function with registers that may be memory. They are brought to it as writes of four bytes, those with low numbers
/// after those with high ones that were left before.
public protocol DoorbellFunction: PCIFunction {
  /// The registers; nil: the function was made without such a place.
  var doorbells: DoorbellArea? { get }
}
