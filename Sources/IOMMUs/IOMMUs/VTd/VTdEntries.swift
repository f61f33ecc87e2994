internal import DMA
internal import IOMMUInterface

/// Where the table is that an entry leads to, or the page: bits 51:12.
private let addressBits: UInt64 = 0x000F_FFFF_FFFF_F000

/// The root table address register (RTADDR), legacy mode.
struct VTdRootTable {
  let word: UInt64
  /// Bits 11:10 choose another kind of table, which this unit does not offer.
  var isLegacy: Bool { word & 0xC00 == 0 }

  /// Where the entry of a bus is.
  func entry(of requester: RequesterID) -> UInt64 { (word & ~0xFFF) + UInt64(requester.bus) * 16 }
}

/// The lower word of a root entry ("Root Entry").
struct VTdRootEntry {
  let word: UInt64
  var isPresent: Bool { word & 1 != 0 }

  /// Where the entry of a requester of this bus is.
  func contextEntry(of requester: RequesterID) -> UInt64 {
    (word & ~0xFFF) &+ UInt64(requester.rawValue & 255) * VTdContextEntry.byteCount
  }
}

/// A context entry ("Context Entry").
struct VTdContextEntry {
  /// What becomes of a requester's addresses (T).
  enum Translation: UInt64 {
    case tables = 0
    case tablesAndDeviceIOTLB = 1
    case passThrough = 2
  }
  let low: UInt64
  let high: UInt64

  /// Bytes of one.
  static var byteCount: UInt64 { 16 }
  var isPresent: Bool { low & 1 != 0 }
  /// FPD.
  var hidesFaults: Bool { low & 2 != 0 }
  /// Nil: reserved.
  var translation: Translation? { Translation(rawValue: low >> 2 & 3) }
  /// SLPTPTR.
  var firstTable: UInt64 { low & ~0xFFF }
  /// AW, as levels of tables: 3 or 4; nil for a width that this unit has not.
  func levels(_ options: VTdOptions) -> Int? {
    switch high & 7 {
    case 1: 3
    case 2 where options.addressWidth == 48: 4
    default: nil
    }
  }
  /// DID.
  var domain: UInt16 { UInt16(truncatingIfNeeded: high >> 8) }
}

/// An entry of a second-level table ("Second-Level Paging Entries").
struct VTdPageEntry {
  let word: UInt64
  /// R and W; both clear: there is nothing.
  var permissions: DMAPermissions { DMAPermissions(rawValue: UInt8(truncatingIfNeeded: word & 3)) }
  /// PS, of an entry above the lowest level: it is of a page, not of a table.
  var isLargePage: Bool { word & 1 << 7 != 0 }
  /// Where the next table or the page is.
  var address: UInt64 { word & addressBits }
}
