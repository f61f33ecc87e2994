internal import Storage
internal import HostIO
internal import Virtio

/// The three requests whose data are ranges of the disk.
enum BlockRangeAction {
  case discard, writeZeroes, secureErase

  var maxSectors: UInt32 { self == .writeZeroes ? BlockRequest.maxWriteZeroesSectors : BlockRequest.maxDiscardSectors }
}

extension BlockWork {
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
      let status = refusal(action, BlockRequest.range(i, of: chain))
      if status == .unsupported { return status }
      first = first ?? status
    }
    return first
  }

  func perform(_ action: BlockRangeAction, _ chain: borrowing DescriptorChain, ranges: Int) -> BlockOutcome {
    if let status = refusal(action, chain, ranges: ranges) { return BlockOutcome(status: status) }
    return perform(action, chain, ranges: 0..<ranges)
  }

  /// Some of the ranges, all of which were found good.
  func perform(_ action: BlockRangeAction, _ chain: borrowing DescriptorChain, ranges: Range<Int>) -> BlockOutcome {
    for i in ranges {
      // The driver may have changed the range since it was read: the checked copy is used.
      let range = BlockRequest.range(i, of: chain)
      if let status = refusal(action, range) { return BlockOutcome(status: status) }
      guard let range else { return .ioError }
      let outcome = perform(action, range)
      if outcome.status != .ok { return outcome }
    }
    return action == .writeZeroes && isDurable ? flush() : .ok
  }

  /// Whether writing zeroes may give the range's space back: not where the driver reads that it never does.
  func mayUnmap(_ range: BlockRange) -> Bool { range.flags & BlockRange.unmap != 0 && disk.canDiscard }

  /// One range that was checked.
  func perform(_ action: BlockRangeAction, _ range: BlockRange) -> BlockOutcome {
    let position = range.sector << 9
    let count = UInt64(range.sectorCount) << 9
    do throws(HostError) {
      switch action {
      case .discard: try disk.file.discard(at: position, count: count)
      case .writeZeroes: try disk.file.writeZeroes(at: position, count: count, unmap: mayUnmap(range))
      case .secureErase: try disk.file.secureErase(at: position, count: count)
      }
    } catch {
      disk.faults.report("\(error)")
      return .ioError
    }
    return .ok
  }
}
