public import HostIO

/// Which calls a block device makes to its host.
public enum DiskEngine: String, Hashable, Sendable, CaseIterable {
  /// Whichever is faster for the image at hand.
  case automatic = "auto"
  /// Several requests under way at once (io_uring).
  case uring
  /// One request after the other.
  case synchronous = "sync"
}

/// When a disk holds the lock that keeps a second writer out of its image.
public enum DiskLock: String, Hashable, Sendable, CaseIterable {
  /// From its making to its end.
  case always
  /// While a queue runs: acquired before the first one starts, which fails if another process has it, and released when
  /// the last one has stopped and all writes are on stable storage. So the destination of a live migration can be there
  /// while its source still runs, and no moment has two writers.
  case running
  /// Never: the operator has to prevent other users of the image.
  case never = "off"
}

/// The options of a block device: all except the path have defaults.
public struct DiskOptions: Sendable {
  /// The image: a regular file or a block device.
  public var path: String
  /// Refuses every change, and says so to the driver.
  public var readOnly = false
  /// Goes around the host's page cache (O_DIRECT).
  public var direct = false
  /// When the image is locked.
  public var lock = DiskLock.always
  /// What the driver can ask the disk's identity for: up to 20 printable ASCII characters.
  public var serial = ""
  /// The block size the driver sees, bytes: a power of two, 512...65536. nil: a block device's own, and 512 for a file.
  /// Requests that are less than a block of the host's are done through memory in between.
  public var logicalBlockSize: Int?
  /// Whether completed writes may be volatile until a flush, unless the driver chooses otherwise. A driver that cannot
  /// flush gets stable writes in any case, and so does one that did not read the field from this device before it
  /// started, because it began with another device.
  public var writeback = true
  /// Whether the driver may choose between writeback and writethrough.
  public var cacheIsConfigurable = true
  /// Offers discards where the host supports them.
  public var discard = true
  /// Whether the image is raw even if its first bytes look like another format. Otherwise an image of another format is
  /// refused: read as raw it is nonsense, and the first write destroys it.
  public var insistsOnRaw = false
  /// Which host calls read and write the image.
  public var engine = DiskEngine.automatic
  /// How often to look whether the image was resized; nil: never.
  public var sizePollInterval: Duration? = .seconds(1)
  /// Called with notices for the operator that need no action: the image was resized. On any thread.
  public var notice: @Sendable (String) -> Void = { _ in }
  /// Called for failed host calls, at most one line a second, on any thread.
  public var report: @Sendable (String) -> Void = { _ in }

  /// A disk with default options, whose contents are the image at `path`.
  public init(path: String) { self.path = path }

  /// Bytes of the longest serial number.
  package static let serialLimit = 20

  /// - Throws: `DiskError.option` of a value that does not do.
  func check() throws(DiskError) {
    if let size = logicalBlockSize, !(512...65536).contains(size) || size & (size - 1) != 0 {
      throw .option("logicalBlockSize", "must be a power of two from 512 to 65536, not \(size)")
    }
    guard serial.utf8.count <= Self.serialLimit, serial.utf8.allSatisfy({ (0x20...0x7e).contains($0) }) else {
      throw .option("serial", "must be at most \(Self.serialLimit) printable ASCII characters")
    }
  }
}

/// Why there can be no block device with these options.
public enum DiskError: Error, Hashable, Sendable, CustomStringConvertible {
  /// The host refuses the image.
  case image(HostError)
  /// The image is of another format than raw: its name.
  case format(String)
  /// The engine that was asked for cannot be had.
  case engine(HostError)
  /// An option's value does not do: the option's name in ``DiskOptions``, or in those of the device, and what it may
  /// be.
  case option(String, String)

  public var description: String {
    switch self {
    case .image(let error): error.description
    case .format(let name): "the image is a \(name) image, not a raw one"
    case .engine(let error): "io_uring cannot be used: \(error)"
    case .option(let name, let rule): "\(name) \(rule)"
    }
  }
}
