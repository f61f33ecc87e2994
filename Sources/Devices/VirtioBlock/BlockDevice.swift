internal import HostIO
public import Storage
public import Virtio

/// virtio-blk: a disk whose contents are a file or a block device of this host (§5.2).
///
/// Any thread may use it.
public final class BlockDevice: VirtioDevice {
  let disk: BlockDisk
  private let fixed: BlockConfiguration
  private let watcher: SizeWatcher?
  private let queueSize: UInt16
  /// Which calls read and write the image: uring or synchronous.
  public let engine: DiskEngine
  public let features: Features
  public let maxQueueSizes: [UInt16]

  /// Opens the image.
  ///
  /// - Throws: `DiskError.image`, EBUSY (`lock`) among others, see `BlockFile`; `.option`; `.format`; `.engine`.
  public init(_ options: BlockOptions) throws(DiskError) {
    try Self.check(options)
    let disk = try BlockDisk(opening: options.disk)
    self.disk = disk
    queueSize = options.queueSize
    engine = try disk.chooseEngine()
    fixed = Self.configuration(disk, options)
    features = Self.features(disk, options)
    maxQueueSizes = Array(repeating: options.queueSize, count: options.queueCount)
    watcher = options.sizePollInterval.map { SizeWatcher(disk, every: $0) }
  }

  public var id: DeviceID { .block }
  public var configurationSize: Int { BlockLayout.configurationSize }

  /// The disk's size now, in bytes.
  public var byteCount: UInt64 { disk.sectorCount << 9 }

  /// Bytes in a block, as the driver sees them.
  public var blockSize: Int { disk.blockSize }

  /// Whether completed writes may be volatile until a flush, as things are now.
  public var isWriteback: Bool { disk.cache.isWriteback }

  /// Whether the image is a block device.
  public var isOnBlockDevice: Bool { disk.file.kind == .blockDevice }

  public func readConfiguration(at offset: Int, into bytes: inout MutableSpan<UInt8>) {
    var now = fixed
    Self.setCapacity(&now, disk.sectorCount)
    if !features.contains(.blockConfigWCE) {
      now.writeback = disk.options.writeback ? 1 : 0
    } else if Self.writebackIndex(offset, bytes.indices) != nil {
      now.writeback = disk.cache.tell() ? 1 : 0
    }
    let all = now.bytes
    for i in bytes.indices {
      let (at, overflow) = offset.addingReportingOverflow(i)
      bytes[i] = !overflow && all.indices.contains(at) ? all[at] : 0
    }
  }

  public func writeConfiguration(at offset: Int, from bytes: Span<UInt8>) {
    guard features.contains(.blockConfigWCE), let index = Self.writebackIndex(offset, bytes.indices) else { return }
    disk.cache.set(writeback: bytes[index] != 0)
  }

  /// Where `writeback` is among bytes from `offset` on.
  private static func writebackIndex(_ offset: Int, _ indices: Range<Int>) -> Int? {
    let (index, overflow) = BlockLayout.writebackOffset.subtractingReportingOverflow(offset)
    return !overflow && indices.contains(index) ? index : nil
  }

  public func makeHandler(for group: Range<Int>, features: Features) throws(DeviceError) -> sending any QueueHandler {
    let use: ImageUse?
    do throws(HostError) {
      use = try disk.options.lock == .running ? ImageUse(disk.image) : nil
    } catch {
      throw DeviceError(
        error.errno == .resourceBusy ? "\(disk.file.path) is in use by another process that locked it" : "\(error)")
    }
    let terms = BlockTerms(features, isReadOnly: disk.file.isReadOnly, writeback: disk.options.writeback)
    // §5.2.5.2: a driver that can configure the cache but not flush it starts with one that needs no flush.
    if features.contains(.blockConfigWCE), !features.contains(.blockFlush) { disk.cache.set(writeback: false) }
    let work = BlockWork(disk: disk, terms: terms, use: use)
    let wanted = disk.options.engine
    if engine == .synchronous { return BlockHandler(work, queue: group.lowerBound) }
    do throws(HostError) {
      let depth = Int(queueSize)
      return try BlockHandler(work, queue: group.lowerBound, depth: depth, inline: wanted == .automatic)
    } catch {
      if wanted == .uring { throw DeviceError("\(error)") }
      disk.faults.report("requests are done one after the other: \(error)")
      return BlockHandler(work, queue: group.lowerBound)
    }
  }

  public func observeConfiguration(_ changed: @escaping @Sendable () -> Void) {
    disk.observe(changed)
    watcher?.start()
  }

  /// The cache mode: the one thing a driver sets here that no front-end repeats to a successor.
  public func saveState() -> [UInt8] { [1, disk.cache.isWriteback ? 1 : 0] }

  public func restoreState(_ bytes: [UInt8]) throws(DeviceError) {
    guard bytes.count == 2, bytes[0] == 1, bytes[1] <= 1 else {
      throw DeviceError("this is no state of a block device of ours: \(bytes.count) bytes")
    }
    disk.cache.set(writeback: bytes[1] == 1)
  }

  /// Looks now whether the image was resized, and announces it.
  public func refreshSize() { disk.refreshSize() }
}
