internal import CLinux
internal import DMA
internal import Glibc
internal import Synchronization

/// A regular file or block device that serves as a disk.
///
/// Any thread may use it. Positions and sizes are in bytes. Nothing here makes the file longer.
public final class BlockFile: Sendable {
  /// How to open one.
  public struct Options: Hashable, Sendable {
    /// Refuses every change.
    public var readOnly: Bool
    /// Goes around the page cache (O_DIRECT).
    public var direct: Bool
    /// Takes the lock that keeps a second user out; see BlockFile+Lock.swift.
    public var locked: Bool

    public init(readOnly: Bool = false, direct: Bool = false, locked: Bool = true) {
      self.readOnly = readOnly
      self.direct = direct
      self.locked = locked
    }
  }

  /// What the path leads to.
  public enum Kind: Hashable, Sendable { case regularFile, blockDevice }

  /// What the host says about the disk's shape.
  public struct Geometry: Hashable, Sendable {
    /// Smallest unit the host addresses, bytes; 512 for a regular file.
    public let logicalBlock: Int
    /// Smallest unit it writes without reading, bytes; the file system's block for a regular file.
    public let physicalBlock: Int
    /// Smallest size of an efficient request, bytes; 0 if unknown.
    public let minimumIO: Int
    /// Best size of a request, bytes; 0 if unknown.
    public let optimalIO: Int
    /// Bytes from the start to the first naturally aligned physical block; -1 if the device is misaligned.
    public let alignmentOffset: Int
    /// Unit of giving space back, bytes; 0 if unknown.
    public let discardGranularity: Int
    /// Most bytes of one discard; 0 if there is no limit, or no discard.
    public let discardLimit: UInt64
  }

  /// The path it was opened by.
  public let path: String
  /// What the path led to.
  public let kind: Kind
  /// Whether every change is refused with EROFS.
  public let isReadOnly: Bool
  /// Whether the page cache is gone around.
  public let isDirect: Bool
  /// The disk's shape, as of opening.
  public let geometry: Geometry
  /// What a request's memory addresses must be a multiple of to go straight to the host, bytes; 1 unless direct.
  public let memoryAlignment: Int
  /// The same for positions and lengths, bytes; 1 unless direct.
  public let positionAlignment: Int
  /// Whether `discard` can work here.
  public let supportsDiscard: Bool
  /// Whether `secureErase` can work here.
  public let supportsSecureErase: Bool

  /// Whether the contents are memory (tmpfs): nothing is gained by not waiting for them.
  public let isMemory: Bool

  let descriptor: FileDescriptor
  private let currentSize: Atomic<UInt64>
  /// Held across reading, changing and writing back a block that a direct write covers in part.
  let partialBlocks = Mutex(())

  /// Opens the disk.
  ///
  /// - Throws: EISDIR for a directory, ENOTBLK for anything else that is no disk, EBUSY (`lock`) if somebody uses the
  ///   image,
  ///   EINVAL (`open O_DIRECT`) if direct access was asked for and the size is not a multiple of what it needs, ENOTSUP if the
  ///   file system has none, and what open(2) says.
  public init(path: String, options: Options = Options()) throws(HostError) {
    // Safe: the string is a NUL-terminated copy that lives across the call.
    let raw = unsafe host_file_open(path, options.readOnly ? 0 : 1, options.direct ? 1 : 0)
    if options.direct, raw == -EINVAL { throw HostError("open O_DIRECT", errno: ENOTSUP, subject: path) }
    let file = FileDescriptor(adopting: try check(raw, "open", path))
    var facts = host_file_facts()
    // Safe: one structure of integers, written before the call returns.
    try check(unsafe host_file_facts(file.rawValue, &facts), "fstat", path)
    switch Int32(facts.kind) {
    case HOST_KIND_REGULAR: kind = .regularFile
    case HOST_KIND_BLOCK: kind = .blockDevice
    case HOST_KIND_DIRECTORY: throw HostError("open", errno: EISDIR, subject: path)
    default: throw HostError("open", errno: ENOTBLK, subject: path)
    }
    if options.locked { try Self.lock(file, writing: !options.readOnly, path) }

    var memory: UInt32 = 1
    var position: UInt32 = 1
    if options.direct {
      // Safe: two integers, written before the call returns.
      try check(unsafe host_file_direct_alignment(file.rawValue, &memory, &position), "open O_DIRECT", path)
      guard facts.size % UInt64(position) == 0 else { throw HostError("open O_DIRECT", errno: EINVAL, subject: path) }
    }
    memoryAlignment = Int(memory)
    positionAlignment = Int(position)
    geometry = Geometry(
      logicalBlock: Int(facts.logical_block), physicalBlock: max(Int(facts.physical_block), Int(position)),
      minimumIO: Int(facts.minimum_io), optimalIO: Int(facts.optimal_io), alignmentOffset: Int(facts.alignment_offset),
      discardGranularity: Int(facts.discard_granularity), discardLimit: facts.discard_max)
    supportsDiscard = !options.readOnly && Self.canDiscard(file, kind, facts)
    supportsSecureErase = !options.readOnly && kind == .blockDevice && Self.canErase(file, facts)
    self.path = path
    isReadOnly = options.readOnly
    isDirect = options.direct
    isMemory = host_file_is_memory(file.rawValue) == 1
    currentSize = Atomic(facts.size)
    descriptor = file
  }

  /// The number, while this object lives.
  package var rawValue: Int32 { descriptor.rawValue }

  /// Bytes, as of opening or the latest `refreshSize()`.
  public var size: UInt64 { currentSize.load(ordering: .relaxed) }

  /// Asks the host for the size again: the operator may have resized the disk. Direct access counts whole blocks only.
  ///
  /// - Returns: whether it changed.
  @discardableResult
  public func refreshSize() throws(HostError) -> Bool {
    var size: UInt64 = 0
    // Safe: one integer, written before the call returns.
    try check(unsafe host_file_size(rawValue, &size), "fstat", path)
    size -= size % UInt64(positionAlignment)
    return currentSize.exchange(size, ordering: .relaxed) != size
  }

  /// Bytes of storage the file takes, less than `size` if it is sparse. Meaningless for a device.
  public func allocatedSize() throws(HostError) -> UInt64 {
    var facts = host_file_facts()
    // Safe: one structure of integers, written before the call returns.
    try check(unsafe host_file_facts(rawValue, &facts), "fstat", path)
    return facts.allocated
  }

  /// Puts everything written so far on stable storage.
  public func flush() throws(HostError) {
    try check(host_file_sync(rawValue), "fdatasync", path)
  }

  /// Whether `count` bytes at `position` are inside, and may be changed.
  func checkChange(_ call: String, at position: UInt64, count: UInt64) throws(HostError) {
    if isReadOnly { throw HostError(call, errno: EROFS, subject: path) }
    let size = size
    guard position <= size, count <= size - position else { throw HostError(call, errno: EINVAL, subject: path) }
  }

  private static func canDiscard(_ file: borrowing FileDescriptor, _ kind: Kind, _ facts: host_file_facts) -> Bool {
    if kind == .blockDevice { return facts.discard_max > 0 }
    // Past the end there is nothing to lose, and a file system without holes says so all the same.
    let unit = UInt64(max(4096, facts.physical_block))
    let (end, overflow) = (facts.size / unit).addingReportingOverflow(1)
    let (start, wrapped) = end.multipliedReportingOverflow(by: unit)
    if !overflow, !wrapped {
      let answer = host_file_punch(file.rawValue, start, unit)
      if answer != -EFBIG, answer != -EINVAL { return answer == 0 }
    }
    // A file of the largest size has nothing behind it. A hole in it can be one again.
    var hole: UInt64 = 0
    var data: UInt64 = 0
    // Safe: two integers, written before the call returns.
    guard unsafe host_file_hole(file.rawValue, &hole, &data) == 0, hole < min(data, facts.size) else { return false }
    return host_file_punch(file.rawValue, hole, min(data, facts.size, hole + unit) - hole) == 0
  }

  private static func canErase(_ file: borrowing FileDescriptor, _ facts: host_file_facts) -> Bool {
    // Out of range, hence refused in any case; what counts is why.
    let start = facts.size - facts.size % UInt64(max(512, facts.logical_block))
    let answer = host_block_secure_erase(
      file.rawValue, start &+ UInt64(facts.logical_block), UInt64(facts.logical_block))
    return answer == -EINVAL
  }
}
