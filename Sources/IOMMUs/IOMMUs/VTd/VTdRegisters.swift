/// Where the registers of a VT-d unit are, and what is in them (Intel VT-d specification, chapter "Register
/// Descriptions").
enum VTdRegister {
  static let version = 0x00
  static let capability = 0x08
  static let extendedCapability = 0x10
  static let globalCommand = 0x18
  static let globalStatus = 0x1C
  static let rootTable = 0x20
  static let contextCommand = 0x28
  static let faultStatus = 0x34
  static let faultEvent = 0x38
  static let queueHead = 0x80
  static let queueTail = 0x88
  static let queueAddress = 0x90
  static let completionStatus = 0x9C
  static let completionEvent = 0xA0
  static let invalidateAddress = 0x200
  static let invalidateIOTLB = 0x208
  static let faultRecord = 0x220
  /// Bytes of registers, with eight fault records.
  static let byteCount = 0x2A0
}

/// Bits of the global command and status registers; the same in both.
struct VTdGlobal: OptionSet {
  var rawValue: UInt32
  static var translation: Self { Self(rawValue: 1 << 31) }
  static var rootTablePointer: Self { Self(rawValue: 1 << 30) }
  static var writeBufferFlush: Self { Self(rawValue: 1 << 27) }
  static var queuedInvalidation: Self { Self(rawValue: 1 << 26) }
}

/// Bits of the fault status register that a write of one clears, and the one that sums up the fault records.
struct VTdFaultStatus: OptionSet {
  var rawValue: UInt32
  static var overflow: Self { Self(rawValue: 1) }
  static var pending: Self { Self(rawValue: 1 << 1) }
  static var queueError: Self { Self(rawValue: 1 << 4) }
  static var completionError: Self { Self(rawValue: 1 << 5) }
  static var completionTimeout: Self { Self(rawValue: 1 << 6) }
  static var clearable: Self { [.overflow, .queueError, .completionError, .completionTimeout] }
}

/// Why the unit refused an access (chapter "Fault Reason Encodings", legacy mode).
enum VTdFaultReason: UInt8 {
  case rootNotPresent = 1
  case contextNotPresent = 2
  case contextInvalid = 3
  case beyondAddressWidth = 4
  case writeForbidden = 5
  case readForbidden = 6
  case pageTableUnreachable = 7
  case rootTableUnreachable = 8
  case contextTableUnreachable = 9
  case reservedInPageTable = 12
}

/// What a unit can do; the guest reads it in the capability registers.
public struct VTdOptions: Hashable, Sendable {
  /// Bits of device addresses: 39 (three levels of tables) or 48 (four, and three as well).
  public var addressWidth: Int
  /// Whether tables may end in entries of 2 MiB and 1 GiB.
  public var hasLargePages: Bool
  /// Whether the driver must invalidate what it adds as well as what it takes away (caching mode).
  public var hasCachingMode: Bool
  /// Whether context entries may allow devices translation caches of their own (ATS): such a device forgets a
  /// translation at a device-IOTLB invalidation and at no other.
  public var hasDeviceIOTLB: Bool
  /// Whether context entries may let a device pass untranslated.
  public var hasPassThrough: Bool
  /// Fault recording registers: 1...8.
  public var faultRecords: Int

  /// - Parameters:
  ///   - addressWidth: 39 or 48; anything else counts as 48.
  ///   - faultRecords: held between 1 and 8.
  public init(
    addressWidth: Int = 48, hasLargePages: Bool = true, hasCachingMode: Bool = false, hasDeviceIOTLB: Bool = true,
    hasPassThrough: Bool = true, faultRecords: Int = 4
  ) {
    self.addressWidth = addressWidth == 39 ? 39 : 48
    self.hasLargePages = hasLargePages
    self.hasCachingMode = hasCachingMode
    self.hasDeviceIOTLB = hasDeviceIOTLB
    self.hasPassThrough = hasPassThrough
    self.faultRecords = min(max(faultRecords, 1), 8)
  }

  /// The capability register: 65,536 domains, page-selective invalidation of up to 2^18 pages, zero-length reads
  /// allowed.
  var capability: UInt64 {
    var word: UInt64 = 6
    if hasCachingMode { word |= 1 << 7 }
    word |= (addressWidth == 48 ? 0b00110 : 0b00010) << 8
    word |= UInt64(addressWidth - 1) << 16
    word |= 1 << 22
    word |= UInt64(VTdRegister.faultRecord / 16) << 24
    if hasLargePages { word |= 0b0011 << 34 }
    word |= 1 << 39
    word |= UInt64(faultRecords - 1) << 40
    word |= 18 << 48
    return word
  }

  /// The extended capability register: coherent walks, queued invalidation; no interrupt remapping.
  var extendedCapability: UInt64 {
    var word: UInt64 = 0b11
    if hasDeviceIOTLB { word |= 1 << 2 }
    if hasPassThrough { word |= 1 << 6 }
    word |= UInt64(VTdRegister.invalidateAddress / 16) << 8
    return word
  }
}
