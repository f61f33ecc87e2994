internal import DMA
internal import Virtio

/// What a chain asks a disk for, checked against the disk as it is now.
enum BlockRequest {
  /// The first `count` device-writable bytes come from `position`.
  case read(position: UInt64, count: Int)
  /// The `count` device-readable bytes after the header go to `position`.
  case write(position: UInt64, count: Int)
  case flush
  case getID
  /// The given number of ranges follows the header.
  case discard(ranges: Int)
  case writeZeroes(ranges: Int)
  case secureErase(ranges: Int)
  /// The status says why not.
  case refused(BlockStatus)
  /// There is no device-writable byte, so no place for a status.
  case withoutStatus
}

/// What a driver negotiated, as far as requests depend on it.
struct BlockTerms {
  let isReadOnly: Bool
  let canDiscard: Bool
  let canWriteZeroes: Bool
  let canSecureErase: Bool
  /// Whether every write must be stable when it completes, if that is fixed; nil: as the driver configures.
  let durable: Bool?

  /// - Parameter writeback: whether the device may have a volatile cache at all, unless the driver configures one.
  init(_ features: Features, isReadOnly: Bool, writeback: Bool) {
    self.isReadOnly = isReadOnly
    canDiscard = features.contains(.blockDiscard)
    canWriteZeroes = features.contains(.blockWriteZeroes)
    canSecureErase = features.contains(.blockSecureErase)
    // §5.2.6.2: a driver that cannot flush has no other way to make a write stable.
    if !features.contains(.blockFlush) {
      durable = true
    } else {
      durable = features.contains(.blockConfigWCE) ? nil : !writeback
    }
  }
}

extension BlockRequest {
  /// Most ranges in a request, and most sectors in a range. What a host takes long for holds up the requests behind it.
  static var maxRanges: Int { 32 }
  static var maxDiscardSectors: UInt32 { 1 << 22 }
  static var maxWriteZeroesSectors: UInt32 { 1 << 17 }

  /// Reads a chain's header. Nothing of it is read again.
  @inline(__always)
  init(_ chain: borrowing DescriptorChain, _ terms: BlockTerms, sectorCount: UInt64) {
    guard chain.writable.byteCount > 0 else {
      self = .withoutStatus
      return
    }
    guard let rawType = chain.readable.read(UInt32.self, at: 0),
      let sector = chain.readable.read(UInt64.self, at: BlockLayout.sectorOffset)
    else {
      self = .refused(.ioError)
      return
    }
    let type = BlockRequestType(rawValue: rawType)
    if type == .read {
      let count = chain.writable.byteCount - 1
      self = Self.isInside(sector, count, sectorCount) ? .read(position: sector << 9, count: count) : .refused(.ioError)
    } else if type == .write {
      let count = chain.readable.byteCount - BlockLayout.headerSize
      self =
        !terms.isReadOnly && Self.isInside(sector, count, sectorCount)
        ? .write(position: sector << 9, count: count) : .refused(.ioError)
    } else {
      self = Self.rare(chain, type, terms)
    }
  }

  /// Whether `count` bytes at a sector are whole sectors of the disk.
  @inline(__always)
  static func isInside(_ sector: UInt64, _ count: Int, _ sectorCount: UInt64) -> Bool {
    count & (BlockLayout.sectorSize - 1) == 0 && sector <= sectorCount && UInt64(count) >> 9 <= sectorCount - sector
  }

  private static func rare(
    _ chain: borrowing DescriptorChain, _ type: BlockRequestType, _ terms: BlockTerms
  ) -> BlockRequest {
    let data = chain.readable.byteCount - BlockLayout.headerSize
    let ranges = data / BlockLayout.rangeSize
    let wellFormed = data % BlockLayout.rangeSize == 0 && ranges > 0 && ranges <= maxRanges && !terms.isReadOnly
    switch type {
    case .flush: return .flush
    case .getID: return .getID
    case .discard where terms.canDiscard || terms.isReadOnly:
      return wellFormed ? .discard(ranges: ranges) : .refused(.ioError)
    case .writeZeroes where terms.canWriteZeroes || terms.isReadOnly:
      return wellFormed ? .writeZeroes(ranges: ranges) : .refused(.ioError)
    case .secureErase where terms.canSecureErase || terms.isReadOnly:
      return wellFormed ? .secureErase(ranges: ranges) : .refused(.ioError)
    default: return .refused(.unsupported)
    }
  }

  /// Range `index` of a request, as its memory has it now.
  static func range(_ index: Int, of chain: borrowing DescriptorChain) -> BlockRange? {
    let at = BlockLayout.headerSize + index * BlockLayout.rangeSize
    guard let sector = chain.readable.read(UInt64.self, at: at),
      let counts = chain.readable.read(UInt64.self, at: at + 8)
    else { return nil }
    return BlockRange(
      sector: sector, sectorCount: UInt32(truncatingIfNeeded: counts), flags: UInt32(truncatingIfNeeded: counts >> 32))
  }
}
