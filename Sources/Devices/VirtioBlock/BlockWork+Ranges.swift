internal import DMA
internal import HostIO
internal import Storage
internal import Virtio

/// The three requests whose data are ranges of the disk.
enum BlockRangeAction {
  case discard, writeZeroes, secureErase

  /// Most ranges in a request, and most sectors in a range. What a host takes long for holds up the requests behind it.
  static var maxRanges: Int { 32 }
  static var maxDiscardSectors: UInt32 { 1 << 22 }
  static var maxWriteZeroesSectors: UInt32 { 1 << 17 }

  var maxSectors: UInt32 { self == .writeZeroes ? Self.maxWriteZeroesSectors : Self.maxDiscardSectors }
}

extension BlockWork {
  /// Range `index` of a request, as its memory has it now.
  func range(_ index: Int, of chain: borrowing DescriptorChain) -> BlockRange? {
    let at = BlockLayout.headerSize + index * BlockLayout.rangeSize
    guard let sector = chain.readable.read(UInt64.self, at: at),
      let counts = chain.readable.read(UInt64.self, at: at + 8)
    else { return nil }
    return BlockRange(
      sector: sector, sectorCount: UInt32(truncatingIfNeeded: counts), flags: UInt32(truncatingIfNeeded: counts >> 32))
  }

  /// Why a range is refused, or nil (§5.2.6.2).
  func refusal(_ action: BlockRangeAction, _ range: BlockRange?) -> BlockStatus? {
    guard let range else { return .ioError }
    if range.flags & ~(action == .writeZeroes ? BlockRange.unmap : 0) != 0 { return .unsupported }
    let count = UInt64(range.sectorCount)
    let capacity = disk.sectorCount
    guard range.sectorCount <= action.maxSectors, range.sector <= capacity, count <= capacity - range.sector else {
      return .ioError
    }
    return nil
  }

  /// The refusal of a request with a bad range, by which nothing is done to the disk. An unknown flag comes before all
  /// else, wherever it is.
  func refusal(_ action: BlockRangeAction, _ chain: borrowing DescriptorChain, ranges: Int) -> BlockStatus? {
    var first: BlockStatus?
    for i in 0..<ranges {
      let status = refusal(action, range(i, of: chain))
      if status == .unsupported { return status }
      first = first ?? status
    }
    return first
  }

  /// Whether writing zeroes may give the range's space back: not where the driver reads that it never does.
  func mayUnmap(_ range: BlockRange) -> Bool { range.flags & BlockRange.unmap != 0 && disk.canDiscard }

  /// One range that was checked.
  func perform(_ action: BlockRangeAction, _ range: BlockRange) throws(HostError) {
    let position = range.sector << 9
    let count = UInt64(range.sectorCount) << 9
    switch action {
    case .discard: try disk.file.discard(at: position, count: count)
    case .writeZeroes: try disk.file.writeZeroes(at: position, count: count, unmap: mayUnmap(range))
    case .secureErase: try disk.file.secureErase(at: position, count: count)
    }
  }
}
