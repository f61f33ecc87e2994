/// A message signalled interrupt: a memory write that the platform understands.
public struct InterruptMessage: Hashable, Sendable {
  /// Where it goes: a multiple of 4.
  public var address: UInt64
  public var data: UInt32
  /// The write of `data` at `address`.
  public init(address: UInt64, data: UInt32) {
    self.address = address
    self.data = data
  }
}
