import DMA

/// Memory of the driver's own that is mapped in one direction for as long as a queue lives: request headers, statuses, indirect
/// tables. A part is synchronised when it is handed over, so it works through a bounce pool too.
struct StreamingArea: ~Copyable {
  private let pages: GuestPages
  private let mapping: DMAMapping
  let guest: GuestAddress
  private let byteCount: UInt64

  init(_ byteCount: UInt64, _ direction: DMADirection, pages: GuestPages, by mapper: any DMAMapper) throws(DMAError) {
    let guest = try pages.allocate(byteCount)
    let mapping = try Self.map(guest, byteCount, direction, pages, mapper)
    self.guest = guest
    self.pages = pages
    self.byteCount = byteCount
    self.mapping = mapping
  }

  private static func map(
    _ guest: GuestAddress, _ byteCount: UInt64, _ direction: DMADirection, _ pages: GuestPages, _ mapper: any DMAMapper
  ) throws(DMAError) -> DMAMapping {
    do throws(DMAError) {
      return try DMAMapping(guest, count: byteCount, direction, by: mapper)
    } catch {
      pages.free(guest, byteCount: byteCount)
      throw error
    }
  }

  /// What the device is told of a place in the area.
  func address(at offset: UInt64) -> DMAAddress { DMAAddress(mapping.address.rawValue &+ offset) }

  /// The driver's view. Nil when the area is not all in one region of memory.
  func cells() -> RingMemory? { pages.memory.cells(at: guest, byteCount: Int(byteCount)) }

  func showDevice(_ offset: UInt64, _ count: UInt64) { mapping.synchronizeForDevice(at: offset, count: count) }
  func showDriver(_ offset: UInt64, _ count: UInt64) { mapping.synchronizeForDriver(at: offset, count: count) }

  /// Gives everything back: the device has let go.
  consuming func close() throws(DMAError) {
    let (pages, guest, byteCount) = (pages, guest, byteCount)
    try mapping.unmap()
    pages.free(guest, byteCount: byteCount)
  }

  /// Leaves everything as it is: the device may use it still.
  consuming func abandon() { mapping.abandon() }
}
