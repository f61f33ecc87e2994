/// Opcodes of the admin command set that are served (5). Others, such as Firmware Commit, Format NVM, Sanitize and
/// Namespace Management, are invalid: OACS says so too.
public enum NVMeAdminOpcode: UInt8, Sendable {
  case deleteSubmissionQueue = 0x00
  case createSubmissionQueue = 0x01
  case getLogPage = 0x02
  case deleteCompletionQueue = 0x04
  case createCompletionQueue = 0x05
  case identify = 0x06
  case abort = 0x08
  case setFeatures = 0x09
  case getFeatures = 0x0a
  case asynchronousEventRequest = 0x0c
  case doorbellBufferConfig = 0x7c
}

/// Opcodes of the NVM command set (6).
public enum NVMeOpcode: UInt8, Sendable {
  case flush = 0x00
  case write = 0x01
  case read = 0x02
  case compare = 0x05
  case writeZeroes = 0x08
  case datasetManagement = 0x09
}

/// Feature identifiers (5.21.1).
public enum NVMeFeature: UInt8, Sendable {
  case arbitration = 0x01
  case powerManagement = 0x02
  case temperatureThreshold = 0x04
  case errorRecovery = 0x05
  case volatileWriteCache = 0x06
  case numberOfQueues = 0x07
  case interruptCoalescing = 0x08
  case interruptVectorConfiguration = 0x09
  case writeAtomicity = 0x0a
  case asynchronousEventConfiguration = 0x0b
}

/// A command as it stands in a submission queue: sixteen dwords (4.2).
@frozen public struct NVMeCommand: Sendable {
  /// The dwords, in the host's byte order.
  public var dwords: InlineArray<16, UInt32>

  /// All zeroes but for opcode and identifier.
  @inlinable public init(opcode: UInt8, identifier: UInt16, namespace: UInt32 = 0) {
    dwords = InlineArray(repeating: 0)
    dwords[0] = UInt32(opcode) | UInt32(identifier) << 16
    dwords[1] = namespace
  }
  @inlinable init(dwords: InlineArray<16, UInt32>) { self.dwords = dwords }

  /// Bytes of one.
  @inlinable public static var byteCount: Int { 64 }
  public var opcode: UInt8 { UInt8(truncatingIfNeeded: dwords[0]) }
  /// FUSE.
  public var fused: UInt32 { dwords[0] >> 8 & 3 }
  /// PSDT: 0 PRPs, 1 and 2 SGLs.
  public var dataPointerType: UInt32 {
    get { dwords[0] >> 14 & 3 }
    set { dwords[0] = dwords[0] & ~(3 << 14) | newValue << 14 }
  }
  /// CID.
  public var identifier: UInt16 { UInt16(truncatingIfNeeded: dwords[0] >> 16) }
  /// NSID.
  public var namespace: UInt32 { dwords[1] }
  /// The halves of DPTR: PRP 1 and 2, or SGL 1.
  public var pointer1: UInt64 {
    get { quad(6) }
    set { setQuad(6, newValue) }
  }
  public var pointer2: UInt64 {
    get { quad(8) }
    set { setQuad(8, newValue) }
  }
  /// SLBA of a command that has one.
  public var startingBlock: UInt64 {
    get { quad(10) }
    set { setQuad(10, newValue) }
  }
  /// How many blocks, of NLB.
  public var blockCount: UInt64 {
    get { UInt64(dwords[12] & 0xffff) + 1 }
    set { dwords[12] = dwords[12] & ~0xffff | UInt32(truncatingIfNeeded: newValue &- 1) & 0xffff }
  }

  private func quad(_ i: Int) -> UInt64 { UInt64(dwords[i]) | UInt64(dwords[i + 1]) << 32 }
  private mutating func setQuad(_ i: Int, _ value: UInt64) {
    dwords[i] = UInt32(truncatingIfNeeded: value)
    dwords[i + 1] = UInt32(truncatingIfNeeded: value >> 32)
  }

  /// FUA, of a read or write.
  static let forceUnitAccess: UInt32 = 1 << 30
  /// DEAC, of a write zeroes.
  static let deallocate: UInt32 = 1 << 25
  /// AD, of a dataset management.
  static let attributeDeallocate: UInt32 = 1 << 2
}

/// One range of a dataset management command (6.7.1.1), and of a driver's wishes.
@frozen public struct NVMeRange: Hashable, Sendable {
  /// Its first block.
  public var startingBlock: UInt64
  /// How many blocks.
  public var blockCount: UInt32

  /// `blockCount` blocks from `startingBlock` on.
  @inlinable public init(_ startingBlock: UInt64, blockCount: UInt32) {
    self.startingBlock = startingBlock
    self.blockCount = blockCount
  }
  static var byteCount: Int { 16 }
}

/// An SGL descriptor: address, length, and what it is (4.4).
struct SGLDescriptor {
  enum Kind: UInt8 { case dataBlock = 0, segment = 2, lastSegment = 3 }
  static var byteCount: Int { 16 }
  var address: UInt64
  var length: UInt32
  /// Type in bits 7:4, subtype in bits 3:0.
  var type: UInt8

  init(_ low: UInt64, _ high: UInt64) {
    address = low
    length = UInt32(truncatingIfNeeded: high)
    type = UInt8(truncatingIfNeeded: high >> 56)
  }
  init(_ kind: Kind, _ address: UInt64, _ length: UInt32) {
    self.address = address
    self.length = length
    type = kind.rawValue << 4
  }

  /// Nil: a type or subtype that is not served.
  var kind: Kind? { type & 15 == 0 ? Kind(rawValue: type >> 4) : nil }
  var high: UInt64 { UInt64(length) | UInt64(type) << 56 }
}
