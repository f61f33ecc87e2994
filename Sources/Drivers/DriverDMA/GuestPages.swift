public import DMA

/// The driver's own memory, a page at a time: a part of the machine's that it may give to buffers, rings and pools.
///
/// One thread uses it.
public final class GuestPages {
  /// The memory that the pages are in.
  public let memory: GuestMemory
  private var free = FreeRanges()

  /// A page, in bytes.
  public static var pageSize: UInt64 { 4096 }

  /// The whole pages among `byteCount` bytes from `address` on, which nothing else uses. They should lie in one region
  /// of memory: rings have to.
  public init(_ memory: GuestMemory, at address: GuestAddress, byteCount: UInt64) {
    self.memory = memory
    let (end, wraps) = address.rawValue.addingReportingOverflow(byteCount)
    let first = address.rawValue / Self.pageSize + (address.rawValue % Self.pageSize == 0 ? 0 : 1)
    let last = (wraps ? UInt64.max : end) / Self.pageSize
    if first < last { _ = free.insert(first, through: last - 1) }
  }

  /// Bytes that are free, in pieces perhaps.
  public var freeBytes: UInt64 { free.count * Self.pageSize }

  /// Takes whole pages, zeroed, for `byteCount` bytes.
  ///
  /// - Parameter alignment: a power of two; less than a page counts as a page.
  public func allocate(_ byteCount: UInt64, alignment: UInt64 = 4096) throws(DMAError) -> GuestAddress {
    guard byteCount > 0, alignment > 0, alignment & (alignment - 1) == 0 else {
      throw .range(GuestAddress(0), count: byteCount)
    }
    let count = (byteCount - 1) / Self.pageSize + 1
    guard let page = free.takeLowest(count, alignment: max(alignment / Self.pageSize, 1)) else {
      throw .outOfMemory(byteCount)
    }
    let address = GuestAddress(page * Self.pageSize)
    guard memory.zero(at: address, count: count * Self.pageSize) else {
      _ = free.insert(page, through: page + (count - 1))
      throw .missing(address)
    }
    return address
  }

  /// Gives back what ``allocate(_:alignment:)`` returned for `byteCount`. Something that is free already stays free
  /// once.
  public func free(_ address: GuestAddress, byteCount: UInt64) {
    guard byteCount > 0 else { return }
    let page = address.rawValue / Self.pageSize
    _ = free.insert(page, through: page + (byteCount - 1) / Self.pageSize)
  }
}

extension GuestMemory {
  /// Fills memory with zeroes; false where memory ends.
  func zero(at address: GuestAddress, count: UInt64) -> Bool {
    let block = InlineArray<4096, UInt8>(repeating: 0)
    var done: UInt64 = 0
    while done < count {
      let step = min(count - done, UInt64(block.count))
      let at = GuestAddress(address.rawValue + done)
      guard copy(block.span.extracting(..<Int(step)), to: at) == Int(step) else { return false }
      done += step
    }
    return true
  }

  /// Copies from one place to another that does not overlap it; false where memory ends.
  func move(_ count: UInt64, from source: GuestAddress, to target: GuestAddress) -> Bool {
    var block = InlineArray<4096, UInt8>(repeating: 0)
    var done: UInt64 = 0
    while done < count {
      let step = Int(min(count - done, UInt64(block.count)))
      var part = block.mutableSpan
      var bytes = part.extracting(..<step)
      guard copy(from: GuestAddress(source.rawValue + done), into: &bytes) == step else { return false }
      guard copy(block.span.extracting(..<step), to: GuestAddress(target.rawValue + done)) == step else { return false }
      done += UInt64(step)
    }
    return true
  }
}
