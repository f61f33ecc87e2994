public import HostIO

/// Which calls a block device makes to its host.
public enum BlockEngine: String, Hashable, Sendable, CaseIterable {
  /// Whichever is faster for the image at hand.
  case automatic = "auto"
  /// Several requests under way at once (io_uring).
  case uring
  /// One request after the other.
  case synchronous = "sync"
}

/// When a block device holds the lock that keeps a second writer out of its image.
public enum BlockLock: String, Hashable, Sendable, CaseIterable {
  /// From its making to its end.
  case always
  /// As long as a queue runs: taken before the first one starts, which does not if somebody else has it, and given back
  /// when the last one has stopped and everything written is on stable storage. So the destination of a live migration
  /// can be there while its source still runs, and no moment has two writers.
  case running
  /// Never: whoever uses the image besides is somebody else's care.
  case never
}

/// How a block device is to be: everything but the path has a default.
public struct BlockOptions: Sendable {
  /// The image: a regular file or a block device.
  public var path: String
  /// Refuses every change, and says so to the driver.
  public var readOnly = false
  /// Goes around the host's page cache (O_DIRECT).
  public var direct = false
  /// When the image is locked.
  public var lock = BlockLock.always
  /// Request queues, each with a thread of its own: 1...256. With more than one VIRTIO_BLK_F_MQ is offered.
  public var queueCount = 1
  /// Most descriptors a queue may have: 2...32768. Whoever serves the device may make its queues smaller.
  public var queueSize: UInt16 = 1024
  /// Most data segments in a request; nil: as many as a queue of 128 descriptors takes (or one of ``queueSize``, if
  /// that is smaller). A value beyond the size of the queues, less two, allows requests that cannot be queued.
  public var maxSegments: Int?
  /// Most bytes in a segment; nil: no limit, and VIRTIO_BLK_F_SIZE_MAX is not offered. At least 4096.
  public var maxSegmentSize: UInt32?
  /// What the driver can ask the disk's identity for: up to 20 printable ASCII characters.
  public var serial = ""
  /// The block size the driver sees, bytes: a power of two, 512...65536. nil: a block device's own, and 512 for a file.
  /// Requests that are less than a block of the host's are done through memory in between.
  public var logicalBlockSize: Int?
  /// Whether completed writes may be volatile until a flush, as long as the driver has no other wish. A driver that
  /// cannot flush gets stable writes in any case, and so does one that was not told by this device before it started:
  /// whoever goes on where another device stopped.
  public var writeback = true
  /// Whether the driver may choose between writeback and writethrough (VIRTIO_BLK_F_CONFIG_WCE).
  public var cacheIsConfigurable = true
  /// Offers discards where the host supports them.
  public var discard = true
  /// Whether the image is raw whatever its first bytes look like. Otherwise an image of another format is refused:
  /// whoever reads it as raw sees nonsense, and the first write destroys it.
  public var insistsOnRaw = false
  /// Which host calls read and write the image.
  public var engine = BlockEngine.automatic
  /// How often to look whether the image was resized; nil: never.
  public var sizePollInterval: Duration? = .seconds(1)
  /// Hears of what an operator may want to know, and nobody has to mend: that the image was resized. Any thread.
  public var notice: @Sendable (String) -> Void = { _ in }
  /// Hears of failed host calls, at most one line a second. Any thread.
  public var report: @Sendable (String) -> Void = { _ in }

  /// A disk with default options, whose contents are the image at `path`.
  public init(path: String) { self.path = path }
}

/// Why there can be no block device with these options.
public enum BlockDeviceError: Error, Hashable, Sendable, CustomStringConvertible {
  /// The host refuses the image.
  case image(HostError)
  /// The image is of another format than raw: its name.
  case format(String)
  /// The engine that was asked for cannot be had.
  case engine(HostError)
  /// An option's value does not do: the option's name in ``BlockOptions``, and what it may be.
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
