import DMA

/// Where a machine's memory is, as its guest numbers it, and what each part is for.
///
///     0x00_0000  buffers
///     0x18_0000  pages for rings, tables and pools
///     0x30_0000  the pool that a confidential guest shares; otherwise more pages
///     0x40_0000  a page that is not there
///     0x40_1000  a little more memory
///     the last 64 KiB of all addresses
package enum MemoryPlan {
  package static let buffers: UInt64 = 0x08_0000
  static let pages: Range<UInt64> = 0x18_0000..<0x30_0000
  static let pool: Range<UInt64> = 0x30_0000..<0x40_0000
  static let hole: UInt64 = 0x40_0000
  static let low = Part(start: 0, byteCount: 0x40_0000)
  static let behindHole = Part(start: 0x40_1000, byteCount: 0xF_F000)
  static let top = Part(start: 0xFFFF_FFFF_FFFF_0000, byteCount: 0x1_0000)
  static let parts = [low, behindHole, top]
  /// Where machine addresses of a paravirtual Xen guest begin: far above its own.
  static let machineBase: UInt64 = 0x1_0000_0000

  struct Part {
    var start: UInt64
    var byteCount: UInt64
  }

  /// The guest's own view of memory over one mapping.
  static func guestView(_ mapping: HostMapping) throws(MachineError) -> GuestMemory {
    var offset: UInt64 = 0
    var regions: [MemoryRegion] = []
    for part in parts {
      regions.append(region(part.start, part.byteCount, mapping, offset))
      offset += part.byteCount
    }
    return try memory(regions)
  }

  /// What devices reach where no unit decides it.
  static func deviceView(_ mapping: HostMapping, _ reach: Platform.Reach) throws(MachineError) -> GuestMemory {
    switch reach {
    case .everything: return try guestView(mapping)
    case .pool: return try memory([region(pool.lowerBound, UInt64(pool.count), mapping, pool.lowerBound)])
    case .machineAddresses:
      return try memory(
        machinePages.map { region($0.machine << 12, 4096, mapping, $0.offset) })
    }
  }

  /// Every page of the guest's: its number there, its number in the machine, and where the mapping has it.
  static var machinePages: [(guest: UInt64, machine: UInt64, offset: UInt64)] {
    var all: [(UInt64, UInt64, UInt64)] = []
    var offset: UInt64 = 0
    for part in parts {
      for page in part.start >> 12..<part.start >> 12 + part.byteCount >> 12 {
        all.append((page, machinePage(page), offset))
        offset += 4096
      }
    }
    return all
  }

  /// Below the pool neighbours are no neighbours in the machine, which counts backwards there; the pool is one run here
  /// and there.
  static func machinePage(_ page: UInt64) -> UInt64 {
    let (base, end) = (machineBase >> 12, pool.lowerBound >> 12)
    if page >= top.start >> 12 { return page }
    return base + (page < end ? end - 1 - page : page)
  }

  private static func region(
    _ start: UInt64, _ byteCount: UInt64, _ mapping: HostMapping, _ offset: UInt64
  ) -> MemoryRegion {
    MemoryRegion(guestAddress: GuestAddress(start), byteCount: byteCount, mapping: mapping, mappingOffset: offset)
  }

  private static func memory(_ regions: [MemoryRegion]) throws(MachineError) -> GuestMemory {
    let memory = GuestMemory()
    try rethrowing(memory.replace(with: regions), saying: MachineError.host)
    return memory
  }

  /// Bytes behind all parts.
  static var byteCount: Int { parts.reduce(0) { $0 + Int($1.byteCount) } }
}
