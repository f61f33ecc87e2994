/// What a VT-d unit says it can do (Intel VT-d specification, capability and extended capability registers, legacy
/// mode).
public struct VTdCapabilities: Hashable, Sendable {
  private let word: UInt64
  private let extended: UInt64

  /// From the words of both registers.
  public init(capability: UInt64, extendedCapability: UInt64) {
    word = capability
    extended = extendedCapability
  }

  private func has(_ bit: UInt64) -> Bool { word >> bit & 1 != 0 }

  /// Numbers of domains, 0 included (ND).
  public var domains: Int { 1 << (4 + 2 * Int(min(word & 7, 6))) }
  /// Levels of tables for 39 and 48 bits of address that the unit walks (SAGAW).
  public var levels: [Int] { (has(9) ? [3] : []) + (has(10) ? [4] : []) }
  /// Bits of a device address, at most (MGAW).
  public var addressWidth: Int { Int(word >> 16 & 63) + 1 }
  /// The level of the largest page: 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB (SLLPS).
  public var largestPage: Int { has(34) ? (has(35) ? 3 : 2) : 1 }
  /// Whether it may remember that there was nothing (CM).
  public var hasCachingMode: Bool { has(7) }
  /// Whether it buffers what processors write to its tables until they flush its write buffer (RWBF).
  public var buffersWrites: Bool { has(4) }
  /// Whether ranges of pages can be invalidated, of 2^`largestRange` pages at most (PSI, MAMV).
  public var hasPageInvalidation: Bool { has(39) }
  /// See ``hasPageInvalidation``.
  public var largestRange: Int { Int(word >> 48 & 63) }
  /// Where the fault records are, and how many (FRO, NFR).
  public var faultRecordOffset: Int { Int(word >> 24 & 0x3FF) * 16 }
  /// See ``faultRecordOffset``.
  public var faultRecords: Int { Int(word >> 40 & 255) + 1 }
  /// Bits of an IOTLB descriptor that have it wait for reads and writes in flight, where that is a choice (DWD, DRD).
  var drains: UInt64 { (has(54) ? 1 << 6 : 0) | (has(55) ? 1 << 7 : 0) }
  /// Whether its walks see what is in processors' caches (C).
  public var hasCoherentWalks: Bool { extended & 1 != 0 }
  /// Queued invalidation (QI).
  public var hasQueuedInvalidation: Bool { extended & 2 != 0 }
  /// Translation caches in devices (DT).
  public var hasDeviceIOTLB: Bool { extended & 4 != 0 }
  /// Entries that let a requester pass (PT).
  public var hasPassThrough: Bool { extended & 0x40 != 0 }
}
