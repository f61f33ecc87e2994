import DMA
import DriverDMA

/// The memory of tables that a unit walks: words in the one region of guest memory that the driver's pages lie in.
final class TableMemory {
  private let pages: GuestPages
  private let cells: RingMemory
  private let start: UInt64

  init(_ pages: GuestPages) throws(DMAError) {
    self.pages = pages
    let page = try pages.allocate(GuestPages.pageSize)
    pages.free(page, byteCount: GuestPages.pageSize)
    let around = pages.memory.regions.first { page.rawValue &- $0.guestAddress.rawValue < $0.byteCount }
    guard let around,
      let cells = pages.memory.cells(at: around.guestAddress, byteCount: Int(clamping: around.byteCount))
    else {
      throw .missing(page)
    }
    self.cells = cells
    start = around.guestAddress.rawValue
  }

  /// Zeroed memory, at a multiple of `alignment` and of a page.
  func allocate(_ byteCount: UInt64 = 4096, alignment: UInt64 = 4096) throws(DMAError) -> UInt64 {
    let guest = try pages.allocate(byteCount, alignment: alignment)
    guard isInside(guest.rawValue, byteCount) else {
      pages.free(guest, byteCount: byteCount)
      throw .missing(guest)
    }
    return guest.rawValue
  }

  func free(_ address: UInt64, byteCount: UInt64 = 4096) { pages.free(GuestAddress(address), byteCount: byteCount) }

  private func isInside(_ address: UInt64, _ byteCount: UInt64) -> Bool {
    let offset = address &- start
    return offset < UInt64(cells.byteCount) && byteCount <= UInt64(cells.byteCount) - offset
  }

  /// The word at a multiple of 8; 0, which is no entry anywhere, where an overwritten table leads out of memory.
  func load(_ address: UInt64) -> UInt64 {
    guard isInside(address, 8) else { return 0 }
    return cells.loadAcquire64(at: Int(address &- start))
  }

  /// Stores a word; what was stored before it is seen before it.
  func store(_ value: UInt64, at address: UInt64) {
    guard isInside(address, 8) else { return }
    cells.storeRelease64(value, at: Int(address &- start))
  }
}
