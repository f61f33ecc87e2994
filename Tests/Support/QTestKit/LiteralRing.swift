/// One descriptor a test wants in a chain.
public struct Piece: Hashable, Sendable {
  /// As the device knows it.
  public var address: UInt64
  public var count: UInt32
  /// Whether the device writes it.
  public var isWritable: Bool

  public init(_ address: UInt64, _ count: Int, writable: Bool) {
    self.address = address
    self.count = UInt32(count)
    isWritable = writable
  }
}

/// A chain the device has used.
public struct Used: Hashable, Sendable {
  /// What `add` returned for it.
  public var id: UInt16
  /// Bytes the device says it wrote.
  public var written: UInt32
  /// Whether the device marked it as written to (packed ring: the WRITE flag; QEMU never sets it). Split rings have no
  /// such mark.
  public var isMarkedWritten: Bool?
}

/// The driver's side of a virtqueue, written literally into guest memory. An independent reading of the specification:
/// shares no code with the project.
public protocol LiteralRing: AnyObject {
  /// Entries.
  var size: UInt16 { get }
  /// The descriptor, driver and device areas, as the device knows them.
  var areas: (descriptor: UInt64, driver: UInt64, device: UInt64) { get }
  /// Makes a chain available.
  /// - `indirect`: the address of memory for an indirect table, if the chain is to go through one.
  /// - Returns: the number `takeUsed` will report it by.
  func add(_ chain: [Piece], indirect: UInt64?) throws(QTestError) -> UInt16
  /// The next chain the device has used, or nil.
  func takeUsed() throws(QTestError) -> Used?
  /// Whether the device wants to be notified of what was added since the last call.
  func needsNotification() throws(QTestError) -> Bool
  /// Descriptors that are free.
  var free: Int { get }
}

func littleEndian<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
  (0..<T.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> T($0 * 8)) }
}

func integer<T: FixedWidthInteger>(_ bytes: some Collection<UInt8>, as: T.Type) -> T {
  bytes.reversed().reduce(0) { $0 << 8 | T(truncatingIfNeeded: $1) }
}
