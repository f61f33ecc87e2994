/// What a base address register maps.
public enum BARKind: Hashable, Sendable {
  /// Memory below 4 GiB.
  case memory32
  /// Memory anywhere; the next register holds the upper half of the address.
  case memory64(prefetchable: Bool)
  case io

  /// The bits below the address, which say what it is.
  var type: UInt32 {
    switch self {
    case .memory32: 0
    case .memory64(let prefetchable): prefetchable ? 0xc : 0x4
    case .io: 1
    }
  }
  var isIO: Bool { self == .io }
  var isWide: Bool { if case .memory64 = self { true } else { false } }
}

/// A base address register of a function.
public struct BAR: Hashable, Sendable {
  /// Its number, 0...5; a 64-bit one takes the next as well.
  public var index: Int
  public var kind: BARKind
  /// Bytes: a power of two, at least 16 for memory and 4 for I/O.
  public var size: UInt64

  public init(index: Int, kind: BARKind, size: UInt64) {
    self.index = index
    self.kind = kind
    self.size = size
  }

  /// The writable bits of the address.
  var mask: UInt64 { ~(size - 1) & (kind.isWide ? .max : 0xffff_ffff) }
}

/// Where a BAR is decoded now.
public struct BARWindow: Hashable, Sendable {
  public var index: Int
  public var isIO: Bool
  /// The first address; the last one does not wrap.
  public var base: UInt64
  /// Bytes.
  public var size: UInt64

  /// The offset of an access of `width` bytes that lies in the window whole.
  func offset(_ address: UInt64, width: Int) -> UInt64? {
    guard address >= base else { return nil }
    let offset = address - base
    return offset < size && UInt64(width) <= size - offset ? offset : nil
  }
}
