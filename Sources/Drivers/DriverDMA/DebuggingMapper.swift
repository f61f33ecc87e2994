public import DMA

/// What a driver did wrong with its mappings.
public enum DMAMisuse: Hashable, Sendable {
  /// A range was unmapped that is not mapped: twice, perhaps.
  case notMapped(MappedRange)
  /// A range is mapped still, though the driver is done.
  case leak(MappedRange)
  /// A buffer was mapped that shares bytes with one that is mapped already, and the device may write at least one of
  /// them.
  case overlap(MappedRange, MappedRange)
  /// The device wrote to a buffer that it was only to read.
  case writtenToDevice(MappedRange)
  /// The driver wrote to a buffer while only the device was to: what it wrote is lost.
  case writtenByDriver(MappedRange)
  /// Synchronised for the driver though the device may not write, past its end, or not mapped at all.
  case synchronization(MappedRange, offset: UInt64, count: UInt64)
}

/// Finds mistakes that do no harm on most machines: the device works on copies of what is mapped, so that a forgotten
/// synchronisation shows, and every mapping is remembered until it ends. It is slow, and allocates.
public final class DebuggingMapper: DMAMapper {
  private struct Copy {
    /// What the driver was given.
    var range: MappedRange
    /// The copy, mapped underneath.
    var inner: MappedRange
    /// What the driver's bytes were at the last map or synchronisation, for the directions in which one side must not
    /// write.
    var before: [UInt8]
  }
  private let inner: any DMAMapper
  private let pages: GuestPages
  private var copies: [Copy] = []
  private var coherent: [MappedRange] = []
  /// What was found, in order.
  public private(set) var misuses: [DMAMisuse] = []

  /// - Parameter pages: where the copies are made.
  public init(over inner: any DMAMapper, pages: GuestPages) {
    self.inner = inner
    self.pages = pages
  }

  /// Ranges that are mapped or allocated now.
  public var mappedCount: Int { copies.count + coherent.count }

  /// Reports everything that is still mapped as a leak; called when a driver says it is done. Returns what was found
  /// since the start.
  public func finish() -> [DMAMisuse] {
    for copy in copies { misuses.append(.leak(copy.range)) }
    for range in coherent { misuses.append(.leak(range)) }
    return misuses
  }

  public var memory: GuestMemory { inner.memory }
  public var maxMappingSize: UInt64 { inner.maxMappingSize }

  public func allocateRange(_ count: UInt64, alignment: UInt64) throws(DMAError) -> MappedRange {
    let range = try inner.allocateRange(count, alignment: alignment)
    coherent.append(range)
    return range
  }

  public func mapRange(_ guest: GuestAddress, count: UInt64, _ direction: DMADirection) throws(DMAError) -> MappedRange
  {
    try MappedRange.check(guest, count)
    guard count <= maxMappingSize else { throw .tooLarge(count, maximum: maxMappingSize) }
    guard let before = bytes(guest, count) else { throw .missing(guest) }
    // The copy begins where the buffer does within its page, as alignment bugs want it.
    let lead = guest.rawValue % GuestPages.pageSize
    let place = try pages.allocate(lead + count)
    let copied = GuestAddress(place.rawValue + lead)
    let mapped: MappedRange
    do throws(DMAError) {
      guard memory.copy(before.span, to: copied) == before.count else { throw .missing(copied) }
      mapped = try inner.mapRange(copied, count: count, direction)
    } catch {
      pages.free(place, byteCount: lead + count)
      throw error
    }
    let range = MappedRange(address: mapped.address, guest: guest, count: count, direction: direction)
    for other in copies where other.range.direction.comesBack || direction.comesBack {
      if other.range.guest.rawValue <= guest.rawValue + (count - 1),
        guest.rawValue <= other.range.guest.rawValue + (other.range.count - 1)
      {
        misuses.append(.overlap(other.range, range))
      }
    }
    copies.append(Copy(range: range, inner: mapped, before: before))
    return range
  }

  public func unmapRange(_ range: MappedRange) throws(DMAError) {
    if range.isCoherent {
      guard let i = coherent.firstIndex(of: range) else {
        misuses.append(.notMapped(range))
        throw .notMapped(range.address)
      }
      coherent.remove(at: i)
      return try inner.unmapRange(range)
    }
    guard let i = copies.firstIndex(where: { $0.range == range }) else {
      misuses.append(.notMapped(range))
      throw .notMapped(range.address)
    }
    let copy = copies.remove(at: i)
    defer {
      pages.free(
        GuestAddress(copy.inner.guest.rawValue & ~4095), byteCount: copy.inner.guest.rawValue & 4095 + range.count)
    }
    try inner.unmapRange(copy.inner)
    switch range.direction {
    case .toDevice:
      if bytes(copy.inner.guest, range.count) != copy.before { misuses.append(.writtenToDevice(range)) }
    case .fromDevice, .bidirectional:
      if range.direction == .fromDevice, bytes(range.guest, range.count) != copy.before {
        misuses.append(.writtenByDriver(range))
      }
      guard memory.move(range.count, from: copy.inner.guest, to: range.guest) else { throw .missing(range.guest) }
    }
  }

  public func synchronizeForDevice(_ range: MappedRange, at offset: UInt64, count: UInt64) {
    guard !range.isCoherent else { return inner.synchronizeForDevice(range, at: offset, count: count) }
    guard let i = find(range, offset, count) else { return }
    _ = memory.move(
      count, from: GuestAddress(range.guest.rawValue + offset),
      to: GuestAddress(copies[i].inner.guest.rawValue + offset))
    remember(i, offset, count)
    inner.synchronizeForDevice(copies[i].inner, at: offset, count: count)
  }

  public func synchronizeForDriver(_ range: MappedRange, at offset: UInt64, count: UInt64) {
    guard !range.isCoherent else { return inner.synchronizeForDriver(range, at: offset, count: count) }
    guard range.direction.comesBack else {
      misuses.append(.synchronization(range, offset: offset, count: count))
      return
    }
    guard let i = find(range, offset, count) else { return }
    inner.synchronizeForDriver(copies[i].inner, at: offset, count: count)
    _ = memory.move(
      count, from: GuestAddress(copies[i].inner.guest.rawValue + offset),
      to: GuestAddress(range.guest.rawValue + offset))
    remember(i, offset, count)
  }

  private func find(_ range: MappedRange, _ offset: UInt64, _ count: UInt64) -> Int? {
    guard range.contains(offset, count), let i = copies.firstIndex(where: { $0.range == range }) else {
      misuses.append(.synchronization(range, offset: offset, count: count))
      return nil
    }
    return i
  }

  private func remember(_ i: Int, _ offset: UInt64, _ count: UInt64) {
    guard let now = bytes(GuestAddress(copies[i].range.guest.rawValue + offset), count) else { return }
    copies[i].before.replaceSubrange(Int(offset)..<Int(offset + count), with: now)
  }

  private func bytes(_ guest: GuestAddress, _ count: UInt64) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: Int(count))
    var span = bytes.mutableSpan
    return memory.copy(from: guest, into: &span) == bytes.count ? bytes : nil
  }
}
