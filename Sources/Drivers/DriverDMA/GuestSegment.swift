public import DMA

/// A piece of a buffer as the driver knows it.
@frozen public struct GuestSegment: Hashable, Sendable {
  /// Where it is.
  public var address: GuestAddress
  /// Bytes; pieces of none are left out.
  public var count: UInt32

  /// `count` bytes at `address`.
  @inlinable public init(_ address: GuestAddress, count: UInt32) {
    self.address = address
    self.count = count
  }

  /// The bytes of all pieces of a buffer.
  public static func byteCount(_ pieces: Span<GuestSegment>) -> Int {
    var total = 0
    for i in pieces.indices { total += Int(pieces[i].count) }
    return total
  }
}
