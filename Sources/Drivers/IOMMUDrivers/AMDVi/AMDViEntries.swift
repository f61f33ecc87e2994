internal import DMA
internal import IOMMUInterface

/// The lower half of a device table entry as the driver writes it (chapter "Device Table Entry").
struct AMDViDeviceEntry {
  /// V and TV: the entry says something, of translation too.
  private static let valid: UInt64 = 3
  /// IR and IW.
  private static let readWrite: UInt64 = 3 << 61
  /// I, in the upper word.
  private static let hasDeviceIOTLB: UInt64 = 1 << 32
  /// SA, in the upper word.
  private static let hidesFaults: UInt64 = 1 << 34

  let low: UInt64
  let high: UInt64
  /// The domain that it names, if it names one.
  private(set) var domain: UInt16?
  /// Whether the requester may keep translations itself.
  private(set) var keepsTranslations = false

  /// Bytes of a whole one.
  static var byteCount: UInt64 { 32 }

  private init(_ low: UInt64, high: UInt64 = 0) {
    self.low = Self.valid | low
    self.high = high
  }

  /// Addresses lead where tables say (Mode: how many levels there are).
  static func tables(at root: UInt64, levels: Int, domain: UInt16, deviceIOTLB: Bool) -> Self {
    var entry = Self(
      root | readWrite | UInt64(levels) << 9, high: UInt64(domain) | (deviceIOTLB ? hasDeviceIOTLB : 0))
    entry.domain = domain
    entry.keepsTranslations = deviceIOTLB
    return entry
  }

  /// Addresses are guest-physical.
  static var passThrough: Self { Self(readWrite) }

  /// Addresses lead nowhere: of no table, and nothing is allowed.
  static func blocked(hidesFaults: Bool) -> Self { Self(0, high: hidesFaults ? Self.hidesFaults : 0) }
}

/// Entries of page tables (chapter "I/O Page Tables").
enum AMDViFormat: PageTableFormat {
  /// PR.
  private static let present: UInt64 = 1
  /// Next Level, bits 11:9: the level of the table it leads to, 0 for a page.
  private static let nextLevelShift: UInt64 = 9
  /// IR and IW.
  private static let permissionShift: UInt64 = 61
  private static let addressBits: UInt64 = 0x000F_FFFF_FFFF_F000

  static func table(at address: UInt64, level: Int) -> UInt64 {
    address | 3 << permissionShift | UInt64(level - 1) << nextLevelShift | present
  }
  static func page(at address: UInt64, level: Int, permissions: DMAPermissions) -> UInt64 {
    address | UInt64(permissions.rawValue & 3) << permissionShift | present
  }
  static func isPresent(_ entry: UInt64) -> Bool { entry & present != 0 }
  static func isPage(_ entry: UInt64, level: Int) -> Bool { level == 1 || entry >> nextLevelShift & 7 == 0 }
  static func address(_ entry: UInt64) -> UInt64 { entry & addressBits }
}

extension AMDViEvent {
  /// From an entry of the event log (chapter "Event Logging").
  init(low: UInt64, high: UInt64) {
    self.init(
      code: UInt8(low >> 60), requester: RequesterID(rawValue: UInt16(truncatingIfNeeded: low)), address: high,
      access: low >> 53 & 1 == 1 ? .write : .read, isPresent: low >> 52 & 1 == 1)
  }
}
