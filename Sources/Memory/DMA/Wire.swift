/// Reads little-endian fields, in order, from bytes that no other thread or process can write.
///
/// A field beyond the end reads as zero and sets ``isTruncated``: a parser reads everything and asks once.
@frozen public struct WireReader: ~Copyable, ~Escapable {
  @usableFromInline let bytes: Span<UInt8>
  /// Where the next field begins.
  public var offset = 0
  /// Whether a field beyond the end was asked for.
  public private(set) var isTruncated = false

  @_lifetime(copy bytes)
  public init(_ bytes: Span<UInt8>) { self.bytes = bytes }

  /// Bytes from ``offset`` to the end.
  public var remaining: Int { bytes.count - offset }

  /// The next integer.
  public mutating func read<T: FixedWidthInteger>(_ type: T.Type = T.self) -> T {
    let size = MemoryLayout<T>.size
    guard offset <= bytes.count - size else {
      isTruncated = true
      return 0
    }
    var value: T = 0
    for i in 0..<size { value |= T(truncatingIfNeeded: bytes[offset + i]) << T(truncatingIfNeeded: 8 * i) }
    offset += size
    return value
  }

  /// Passes over `count` bytes.
  public mutating func skip(_ count: Int) {
    guard count >= 0, count <= remaining else {
      isTruncated = true
      return
    }
    offset += count
  }

  /// The next `count` bytes.
  public mutating func bytes(_ count: Int) -> [UInt8] {
    guard count >= 0, count <= remaining else {
      isTruncated = true
      return []
    }
    var result: [UInt8] = []
    result.reserveCapacity(count)
    for i in 0..<count { result.append(bytes[offset + i]) }
    offset += count
    return result
  }
}

/// Builds little-endian fields, in order.
public struct WireWriter: Sendable {
  /// What was written so far.
  public private(set) var bytes: [UInt8] = []

  /// Nothing yet, with room for `capacity` bytes before the first allocation.
  public init(capacity: Int = 64) { bytes.reserveCapacity(capacity) }

  /// Appends an integer.
  public mutating func write<T: FixedWidthInteger>(_ value: T) {
    for i in 0..<MemoryLayout<T>.size { bytes.append(UInt8(truncatingIfNeeded: value >> T(truncatingIfNeeded: 8 * i))) }
  }

  /// Appends bytes as they are.
  public mutating func write(_ more: [UInt8]) { bytes.append(contentsOf: more) }

  /// Appends `count` zero bytes.
  public mutating func zero(_ count: Int) { bytes.append(contentsOf: repeatElement(0, count: count)) }
}
