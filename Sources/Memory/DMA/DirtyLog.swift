internal import Synchronization

/// Which pages of guest memory a device wrote, for live migration: one bit per 4 KiB of guest-physical memory, for
/// every path a write may take and every kind of address a driver may give.
///
/// Marking works back from host memory, so a page that is visible at several guest addresses is marked at each. What is
/// written to memory that is being taken away is marked where it was, and where the table now in force shows the same
/// bytes of the same file. Bits beyond the log's end are dropped. May be called from any thread.
///
/// A bit follows the bytes it is about, on every processor: a front-end that clears it and then copies the page has
/// them, or finds the bit again.
public final class DirtyLog: Sendable {
  private let bits: HostMapping
  private let memory: GuestMemory
  private let changed: @Sendable () -> Void
  private let hasNews = Atomic<Bool>(false)

  /// `bits` is the front-end's bitmap: bit n of byte n / 8 is guest page n. `changed` is called when bits were set that
  /// were not set before, at most once a round of a queue, on the queue's thread.
  public init(bits: HostMapping, memory: GuestMemory, changed: @escaping @Sendable () -> Void = {}) {
    self.bits = bits
    self.memory = memory
    self.changed = changed
  }

  /// Says that bits were set since the last time, if any were: a queue calls it at the end of a round.
  package func announce() {
    if hasNews.load(ordering: .relaxed), hasNews.exchange(false, ordering: .acquiringAndReleasing) { changed() }
  }

  func mark(host: UInt64, count: Int) {
    guard count > 0 else { return }
    let regions = memory.writtenRegions
    // A run may go on in the next region, where their mappings adjoin.
    let end = host &+ UInt64(count)
    for region in regions {
      let from = max(host, region.hostStart)
      let to = min(end, region.hostStart &+ region.byteCount)
      guard from < to else { continue }
      let (offset, n) = (from - region.hostStart, to - from)
      mark(region.guestAddress.rawValue + offset, n)
      // Other regions may show the same bytes of the same file at another guest address.
      guard let file = region.mapping.file else { continue }
      let first = file.offset &+ region.mappingOffset &+ offset
      for other in regions {
        guard let twin = other.mapping.file, twin.device == file.device, twin.inode == file.inode,
          other.hostStart != region.hostStart
        else { continue }
        let start = twin.offset &+ other.mappingOffset
        let low = max(start, first)
        let high = min(start &+ other.byteCount, first &+ n)
        if low < high { mark(other.guestAddress.rawValue + (low - start), high - low) }
      }
    }
  }

  private func mark(_ guest: UInt64, _ count: UInt64) {
    let last = (guest &+ (count - 1)) >> 12
    var page = guest >> 12
    while page <= last {
      let byte = page >> 3
      guard byte < UInt64(bits.byteCount) else { return }
      // Safe: the byte is inside the mapping; Atomic<UInt8> has the layout of UInt8.
      let bit = UInt8(1) << UInt8(page & 7)
      let old = unsafe (bits.base + Int(byte)).assumingMemoryBound(to: Atomic<UInt8>.self).pointee
        .bitwiseOr(bit, ordering: .acquiringAndReleasing).oldValue
      if old & bit == 0 { hasNews.store(true, ordering: .releasing) }
      page += 1
    }
  }
}
