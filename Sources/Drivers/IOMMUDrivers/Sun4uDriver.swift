public import DMA
public import DriverDMA

/// The driver of a SPARC64 sun4u host bridge's IOMMU: a translation storage buffer in memory, the one domain of
/// everything behind the bridge. Its registers are at offsets 0 (control), 8 (base) and 16 (flush), 8 bytes each.
///
/// What devices may write they may read. Unmaps are strict: each page is flushed by a register of its own.
public final class Sun4uDriver: IOMMUDomain {
  private let registers: any RegisterAccess
  private let memory: TableMemory
  private let buffer: UInt64
  private let entries: UInt64
  private let control: UInt64
  /// A page, in bytes: what an `IOVAAllocator` for the window takes as its granule.
  public let pageSize: UInt64

  /// Takes the unit over, with nothing mapped; translation is off until ``enable()``.
  ///
  /// - Parameters:
  ///   - pages: where the buffer comes from.
  ///   - order: 1024 << `order` pages can be mapped: 0...7. Of 64 KiB pages no more than 2^16 have addresses.
  ///   - largePages: pages of 64 KiB instead of 8 KiB.
  public init(
    _ registers: any RegisterAccess, pages: GuestPages, order: Int = 3, largePages: Bool = false
  ) throws(UnitError) {
    precondition((0...(largePages ? 6 : 7)).contains(order), "a buffer as documented")
    self.registers = registers
    pageSize = largePages ? 65536 : 8192
    entries = 1024 << UInt64(order)
    control = UInt64(order) << 16 | (largePages ? 4 : 0)
    memory = try rethrowing(TableMemory(pages), as: UnitError.memory)
    buffer = try rethrowing(
      memory.allocate(entries * 8, alignment: max(entries * 8, 8192)), as: UnitError.memory)
    registers.write(control, at: 0, width: 8)
    registers.write(buffer, at: 8, width: 8)
    guard registers.read(at: 0, width: 8) == control, registers.read(at: 8, width: 8) == buffer else {
      throw .timeout(register: 0)
    }
  }

  /// Turns translation on: from now on devices reach what is mapped and nothing else.
  public func enable() throws(UnitError) {
    registers.write(control | 1, at: 0, width: 8)
    guard registers.read(at: 0, width: 8) == control | 1 else { throw .timeout(register: 0) }
  }

  /// Turns translation off: every address is physical again.
  public func disable() { registers.write(control, at: 0, width: 8) }

  /// The device addresses that can be mapped: the highest below 4 GiB.
  public var aperture: ClosedRange<UInt64> { (1 << 32 - entries * pageSize)...0xFFFF_FFFF }

  /// Where a page's entry is; the range is inside the window.
  private func check(_ address: DMAAddress, _ count: UInt64) throws(DMAError) -> Range<UInt64> {
    guard (address.rawValue | count) & (pageSize - 1) == 0, count > 0, aperture.contains(address.rawValue),
      count - 1 <= aperture.upperBound - address.rawValue
    else { throw .iommu(address) }
    let first = (address.rawValue - aperture.lowerBound) / pageSize
    return first..<first + count / pageSize
  }

  // Entries are big-endian, as the processor is. Bit 63: there is one; bits 62:61 the page size; bit 4 coherent; bit 1
  // writable.
  private func isMapped(_ index: UInt64) -> Bool { UInt64(bigEndian: memory.load(buffer + index * 8)) >> 63 != 0 }
  private func store(_ entry: UInt64, _ index: UInt64) { memory.store(entry.bigEndian, at: buffer + index * 8) }

  public func map(
    _ address: DMAAddress, to guest: GuestAddress, count: UInt64, permissions: DMAPermissions
  ) throws(DMAError) {
    let range = try check(address, count)
    guard guest.rawValue & (pageSize - 1) == 0, guest.rawValue < 1 << 43, count <= 1 << 43 - guest.rawValue,
      !permissions.isEmpty
    else {
      throw .range(guest, count: count)
    }
    guard !range.contains(where: isMapped) else { throw .iommu(address) }
    let flags: UInt64 = 1 << 63 | (pageSize == 65536 ? 1 << 61 : 0) | 1 << 4 | (permissions.contains(.write) ? 2 : 0)
    for (n, index) in range.enumerated() { store(guest.rawValue + UInt64(n) * pageSize | flags, index) }
  }

  public func unmap(_ address: DMAAddress, count: UInt64) throws(DMAError) {
    let range = try check(address, count)
    guard range.allSatisfy(isMapped) else { throw .iommu(address) }
    for (n, index) in range.enumerated() {
      store(0, index)
      registers.write(address.rawValue + UInt64(n) * pageSize, at: 16, width: 8)
    }
    // A read comes back after the writes before it have arrived.
    _ = registers.read(at: 0, width: 8)
  }
}
