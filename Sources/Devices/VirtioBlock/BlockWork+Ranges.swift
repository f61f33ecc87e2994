internal import DMA
internal import HostIO
internal import Storage
internal import Virtio

extension DiskRangeAction {
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
  func refusal(_ action: DiskRangeAction, _ range: BlockRange?) -> BlockStatus? {
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
  func refusal(_ action: DiskRangeAction, _ chain: borrowing DescriptorChain, ranges: Int) -> BlockStatus? {
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

  /// Range `index` of a request, unless it is refused. The driver may have changed it since the request was looked at:
  /// what is done is what is checked here.
  func checkedRange(_ index: Int, of chain: borrowing DescriptorChain, _ action: DiskRangeAction) -> DiskRange? {
    guard let range = range(index, of: chain), refusal(action, range) == nil else { return nil }
    return DiskRange(
      position: range.sector << 9, count: UInt64(range.sectorCount) << 9, mayUnmap: mayUnmap(range))
  }
}
