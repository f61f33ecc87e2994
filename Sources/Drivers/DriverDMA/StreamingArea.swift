package import DMA

/// Memory of the driver's own that is mapped in one direction for as long as a queue lives: request headers, statuses,
/// indirect tables. A part is synchronised when it is handed over, so it works through a bounce pool too.
package struct StreamingArea: ~Copyable {
  // Ends before the pages that it maps.
  private let mapping: DMAMapping
  private let place: OwnedPages

  package init(
    _ byteCount: UInt64, _ direction: DMADirection, pages: GuestPages, by mapper: any DMAMapper
  ) throws(DMAError) {
    let place = try OwnedPages(byteCount, of: pages)
    mapping = try DMAMapping(place.address, count: byteCount, direction, by: mapper)
    self.place = place
  }

  /// Where it is, for the driver.
  package var guest: GuestAddress { place.address }

  /// The device address of a place in the area.
  package func address(at offset: UInt64) -> DMAAddress { DMAAddress(mapping.address.rawValue &+ offset) }

  /// The driver's view. Nil when the area is not all in one region of memory.
  package func cells() -> RingMemory? { place.pages.memory.cells(at: guest, byteCount: Int(place.byteCount)) }

  package func showDevice(_ offset: UInt64, _ count: UInt64) { mapping.synchronizeForDevice(at: offset, count: count) }
  package func showDriver(_ offset: UInt64, _ count: UInt64) { mapping.synchronizeForDriver(at: offset, count: count) }

  /// Unmaps and frees everything; the device no longer uses it. If the mapping cannot be undone, the pages are never
  /// used again.
  package consuming func close() throws(DMAError) {
    do throws(DMAError) {
      try mapping.unmap()
    } catch {
      place.abandon()
      throw error
    }
  }

  /// Leaves everything as it is: the device may use it still.
  package consuming func abandon() {
    mapping.abandon()
    place.abandon()
  }
}

/// Pages that go back when the value ends.
package struct OwnedPages: ~Copyable {
  package let pages: GuestPages
  package let address: GuestAddress
  package let byteCount: UInt64
  private var isOurs = true

  package init(_ byteCount: UInt64, of pages: GuestPages) throws(DMAError) {
    address = try pages.allocate(byteCount)
    self.pages = pages
    self.byteCount = byteCount
  }

  deinit { if isOurs { pages.free(address, byteCount: byteCount) } }

  /// Never gives them back.
  package consuming func abandon() { isOurs = false }
}
