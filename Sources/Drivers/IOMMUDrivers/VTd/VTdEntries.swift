internal import DMA

/// The lower word of a root entry ("Root Entry").
enum VTdRootEntry {
  static func table(at address: UInt64) -> UInt64 { address | 1 }
}

/// A context entry as the driver writes it ("Context Entry").
struct VTdContextEntry {
  /// Bits of the lower word: P, FPD, T.
  private static let present: UInt64 = 1
  private static let hidesFaults: UInt64 = 1 << 1
  private static let hasDeviceIOTLB: UInt64 = 1 << 2
  private static let passThrough: UInt64 = 2 << 2

  let low: UInt64
  let high: UInt64
  /// The domain that it names, if it names one.
  let domain: UInt16?
  /// Whether the requester may keep translations itself.
  let keepsTranslations: Bool

  /// Bytes of one.
  static var byteCount: UInt64 { 16 }

  private init(present fields: UInt64, domain: UInt16, levels: Int, keepsTranslations: Bool = false) {
    low = Self.present | fields
    // DID, and AW: levels of tables less two.
    high = UInt64(domain) << 8 | UInt64(levels - 2)
    self.domain = domain
    self.keepsTranslations = keepsTranslations
  }

  private init(absent fields: UInt64) {
    low = fields
    high = 0
    domain = nil
    keepsTranslations = false
  }

  /// Addresses lead where tables say.
  static func tables(at root: UInt64, levels: Int, domain: UInt16, deviceIOTLB: Bool) -> Self {
    Self(
      present: root | (deviceIOTLB ? hasDeviceIOTLB : 0), domain: domain, levels: levels,
      keepsTranslations: deviceIOTLB)
  }

  /// Addresses are guest-physical. `levels`: the most that the unit has, as the specification wants it.
  static func passThrough(domain: UInt16, levels: Int) -> Self {
    Self(present: passThrough, domain: domain, levels: levels)
  }

  /// Addresses lead nowhere.
  static func blocked(hidesFaults: Bool) -> Self { Self(absent: hidesFaults ? Self.hidesFaults : 0) }
}

/// Entries of second-level tables ("Second-Level Paging Entries").
enum VTdFormat: PageTableFormat {
  /// R and W.
  private static let permissionBits: UInt64 = 3
  /// PS: an entry above the lowest level ends the walk.
  private static let largePage: UInt64 = 1 << 7
  private static let addressBits: UInt64 = 0x000F_FFFF_FFFF_F000

  static func table(at address: UInt64, level: Int) -> UInt64 { address | permissionBits }
  static func page(at address: UInt64, level: Int, permissions: DMAPermissions) -> UInt64 {
    address | UInt64(permissions.rawValue) & permissionBits | (level > 1 ? largePage : 0)
  }
  static func isPresent(_ entry: UInt64) -> Bool { entry & permissionBits != 0 }
  static func isPage(_ entry: UInt64, level: Int) -> Bool { level == 1 || entry & largePage != 0 }
  static func address(_ entry: UInt64) -> UInt64 { entry & addressBits }
}
