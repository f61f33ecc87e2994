internal import CLinux

/// Anonymous memory with a descriptor (memfd): to be mapped, and passed to a peer.
public struct MemoryFile: ~Copyable, Sendable {
  /// What may no longer be done to the file, by any process.
  public struct Seals: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// It cannot become smaller: a mapping of it never ends early.
    public static let shrink = Seals(rawValue: UInt32(HOST_SEAL_SHRINK))
    /// It cannot become larger.
    public static let grow = Seals(rawValue: UInt32(HOST_SEAL_GROW))
    /// It cannot be written, mapped or otherwise.
    public static let write = Seals(rawValue: UInt32(HOST_SEAL_WRITE))
    /// No more seals.
    public static let seals = Seals(rawValue: UInt32(HOST_SEAL_SEALS))
  }

  /// The file, for mapping and for passing on.
  public let descriptor: FileDescriptor

  /// A file of `size` zero bytes. The name shows in /proc only.
  ///
  /// - Parameter isHuge: in this host's huge pages, of which `size` has to be a multiple. There may be none: then the
  ///   first touch
  ///   of a mapping raises SIGBUS.
  public init(name: String, size: UInt64, seals: Seals = [], isHuge: Bool = false) throws(HostError) {
    // Safe: the string is a NUL-terminated copy that lives across the call.
    let made = unsafe isHuge ? host_memfd_huge(name) : host_memfd(name)
    let file = FileDescriptor(adopting: try check(made, "memfd_create"))
    try check(host_truncate(file.rawValue, size), "ftruncate")
    if !seals.isEmpty { try check(host_seals_add(file.rawValue, seals.rawValue), "fcntl F_ADD_SEALS") }
    descriptor = file
  }

  /// One that a peer passed. Check its claims with `size()` and `seals()`.
  public init(adopting descriptor: consuming FileDescriptor) {
    self.descriptor = descriptor
  }

  /// Bytes, now. Unless sealed a peer may change it at any time.
  public func size() throws(HostError) -> UInt64 {
    var size: UInt64 = 0
    // Safe: one integer, written before the call returns.
    try check(unsafe host_file_size(descriptor.rawValue, &size), "fstat")
    return size
  }

  /// Makes the file `size` bytes long; what is new reads as zero.
  public func resize(to size: UInt64) throws(HostError) {
    try check(host_truncate(descriptor.rawValue, size), "ftruncate")
  }

  /// The seals it has.
  public func seals() throws(HostError) -> Seals {
    Seals(rawValue: UInt32(try check(host_seals_get(descriptor.rawValue), "fcntl F_GET_SEALS")))
  }

  /// Seals it; a seal cannot be taken off again.
  public func add(_ seals: Seals) throws(HostError) {
    try check(host_seals_add(descriptor.rawValue, seals.rawValue), "fcntl F_ADD_SEALS")
  }

  /// Gives the descriptor away.
  public consuming func intoDescriptor() -> FileDescriptor {
    descriptor
  }
}
