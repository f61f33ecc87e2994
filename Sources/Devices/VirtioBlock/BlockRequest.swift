internal import DMA
internal import Storage
internal import Virtio

/// What a chain asks a disk for, checked against the disk as it is now.
enum BlockRequest {
  case operation(DiskOperation)
  case getID
  /// There is nothing to do: this is its status.
  case ended(BlockStatus)
  /// There is no device-writable byte, so no place for a status.
  case withoutStatus
}

extension DiskOperation {
  /// What is done to ranges, if it is a request of those.
  var rangeAction: DiskRangeAction? {
    if case .ranges(let action) = kind { return action }
    return nil
  }

  /// The chain's segments that hold the data, made to start and end where the data do; nil if that cannot be.
  @inline(__always)
  func segments(of chain: borrowing DescriptorChain) -> Range<Int>? {
    switch kind {
    case .read: chain.writable.split(at: count).map { 0..<$0 }
    case .write: chain.readable.split(at: BlockLayout.headerSize).map { $0..<chain.readable.segmentCount }
    case .flush, .ranges: 0..<0
    }
  }
}

/// What a driver negotiated, as far as requests depend on it.
struct BlockTerms {
  private let features: Features
  let isReadOnly: Bool
  /// Whether every write is to be stable when it completes, if that is settled; nil: as the driver configures.
  let durable: Bool?

  /// - Parameter writeback: whether the device may have a volatile cache at all, unless the driver configures one.
  init(_ features: Features, isReadOnly: Bool, writeback: Bool) {
    self.features = features
    self.isReadOnly = isReadOnly
    // §5.2.6.2: a driver that cannot flush has no other way to make a write stable.
    if !features.contains(.blockFlush) {
      durable = true
    } else {
      durable = features.contains(.blockConfigWCE) ? nil : !writeback
    }
  }

  /// What a request does to ranges; nil: it is of another type, or of one that was not negotiated. A disk that cannot
  /// be
  /// changed knows all of them, and fails them.
  fileprivate func rangeAction(_ type: BlockRequestType) -> DiskRangeAction? {
    switch type {
    case .discard where features.contains(.blockDiscard) || isReadOnly: .discard
    case .writeZeroes where features.contains(.blockWriteZeroes) || isReadOnly: .writeZeroes
    case .secureErase where features.contains(.blockSecureErase) || isReadOnly: .secureErase
    default: nil
    }
  }
}

extension BlockWork {
  /// Reads a chain's header. Nothing of it is read again.
  @inline(__always)
  func classify(_ chain: borrowing DescriptorChain) -> BlockRequest {
    guard chain.writable.byteCount > 0 else { return .withoutStatus }
    guard let rawType = chain.readable.read(UInt32.self, at: 0),
      let sector = chain.readable.read(UInt64.self, at: BlockLayout.sectorOffset)
    else { return .ended(.ioError) }
    let type = BlockRequestType(rawValue: rawType)
    if type == .read { return transfer(.read, sector, chain.writable.byteCount - 1) }
    if type == .write {
      if terms.isReadOnly { return .ended(.ioError) }
      return transfer(.write(durable: isDurable), sector, chain.readable.byteCount - BlockLayout.headerSize)
    }
    return classify(rare: type, chain)
  }

  /// A read or write of `count` bytes, which have to be whole sectors of the disk.
  @inline(__always)
  private func transfer(_ kind: DiskOperation.Kind, _ sector: UInt64, _ count: Int) -> BlockRequest {
    let sectorCount = disk.sectorCount
    guard count & (BlockLayout.sectorSize - 1) == 0, sector <= sectorCount, UInt64(count) >> 9 <= sectorCount - sector
    else { return .ended(.ioError) }
    return count == 0 ? .ended(.ok) : .operation(DiskOperation(kind: kind, position: sector << 9, count: count))
  }

  private func classify(rare type: BlockRequestType, _ chain: borrowing DescriptorChain) -> BlockRequest {
    if type == .flush { return .operation(DiskOperation(kind: .flush)) }
    if type == .getID { return .getID }
    guard let action = terms.rangeAction(type) else { return .ended(.unsupported) }
    let data = chain.readable.byteCount - BlockLayout.headerSize
    let (count, rest) = data.quotientAndRemainder(dividingBy: BlockLayout.rangeSize)
    guard rest == 0, count > 0, count <= DiskRangeAction.maxRanges, !terms.isReadOnly else { return .ended(.ioError) }
    if let status = refusal(action, chain, ranges: count) { return .ended(status) }
    return .operation(DiskOperation(kind: .ranges(action), count: count))
  }
}
