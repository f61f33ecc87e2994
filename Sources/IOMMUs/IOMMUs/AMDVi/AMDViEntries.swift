internal import DMA
internal import IOMMUInterface

/// Where a table, a page or a buffer is: bits 51:12.
private let addressBits: UInt64 = 0x000F_FFFF_FFFF_F000

/// The register that says where a buffer of 16-byte entries is: the command buffer's or the event log's.
struct AMDViBufferBase {
  let word: UInt64
  var address: UInt64 { word & addressBits }
  /// Of the whole buffer; nil for a length that is none.
  var byteCount: UInt64? {
    let order = word >> 56
    return (8...15).contains(order) ? 16 << order : nil
  }
}

/// The device table base address register.
struct AMDViDeviceTable {
  let word: UInt64

  /// Where the entry of a requester is; nil when the table does not reach that far.
  func entry(of requester: RequesterID) -> UInt64? {
    let offset = UInt64(requester.rawValue) * AMDViDeviceEntry.byteCount
    let pages = (word & 0x1FF) + 1
    return offset < pages << 12 ? (word & addressBits) + offset : nil
  }
}

/// The lower half of a device table entry (chapter "Device Table Entry").
struct AMDViDeviceEntry {
  let low: UInt64
  let high: UInt64

  /// Bytes of a whole one.
  static var byteCount: UInt64 { 32 }
  /// V.
  var isValid: Bool { low & 1 != 0 }
  /// TV: what is said of translation is valid.
  var saysTranslation: Bool { low & 2 != 0 }
  /// Mode: levels of page tables, 0 for none: addresses are guest-physical.
  var levels: Int { Int(low >> 9 & 7) }
  var firstTable: UInt64 { low & addressBits }
  /// IR and IW.
  var permissions: DMAPermissions { DMAPermissions(rawValue: UInt8(truncatingIfNeeded: low >> 61 & 3)) }
  /// DomainID.
  var domain: UInt16 { UInt16(truncatingIfNeeded: high) }
  /// I.
  var hasDeviceIOTLB: Bool { high >> 32 & 1 != 0 }
  /// SE or SA.
  var hidesFaults: Bool { high >> 33 & 3 != 0 }
}

/// An entry of a page table (chapter "I/O Page Tables").
struct AMDViPageEntry {
  /// What an entry leads to (Next Level).
  enum Target {
    /// A page of the size that the table's level has.
    case page
    /// A page of 2^`order` times 4 KiB.
    case largePage(order: Int)
    /// A table of this level.
    case table(level: Int)
  }
  let word: UInt64
  /// PR.
  var isPresent: Bool { word & 1 != 0 }
  /// IR and IW.
  var permissions: DMAPermissions { DMAPermissions(rawValue: UInt8(truncatingIfNeeded: word >> 61 & 3)) }
  var address: UInt64 { word & addressBits }
  var target: Target {
    switch Int(word >> 9 & 7) {
    case 0: .page
    case 7: .largePage(order: Int(PageRange.order(ofLowestClearBit: address)))
    case let level: .table(level: level)
    }
  }
}
