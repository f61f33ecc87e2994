internal import DMA
package import HostIO
internal import Synchronization

/// What all queues of a disk share, of any device: the image, its size now, the cache mode, the reporter of failures.
///
/// Any thread may use it.
package final class BlockDisk: Sendable {
  package let file: BlockFile
  package let options: DiskOptions
  package let faults: FaultReporter
  /// Bytes in a block as the driver sees them.
  package let blockSize: Int
  private let capacity: Atomic<UInt64>
  package let cache: BlockCacheMode
  package let image: SharedImage
  private let observers = Mutex<[@Sendable () -> Void]>([])

  /// Opens the image.
  ///
  /// - Throws: `DiskError.image`, EBUSY (`lock`) among others, see `BlockFile`; `.option`; `.format`.
  package convenience init(opening options: DiskOptions) throws(DiskError) {
    try options.check()
    let file = try rethrowing(
      BlockFile(
        path: options.path,
        options: BlockFile.Options(
          readOnly: options.readOnly, direct: options.direct, locked: options.lock == .always)),
      as: DiskError.image)
    if !options.insistsOnRaw, let format = ImageFormat.find(in: file) { throw .format(format.rawValue) }
    if options.lock == .running { try rethrowing(file.checkLocks(), as: DiskError.image) }
    self.init(file, options)
    let rest = file.size - sectorCount << 9
    if rest > 0 { options.report("\(file.path): its last \(rest) bytes are no whole block, and not part of the disk") }
  }

  private init(_ file: BlockFile, _ options: DiskOptions) {
    self.file = file
    self.options = options
    blockSize = options.logicalBlockSize ?? file.geometry.logicalBlock
    faults = FaultReporter(options.report)
    capacity = Atomic(Self.sectors(file.size, blockSize))
    cache = BlockCacheMode(writeback: options.writeback)
    image = SharedImage(file, faults)
  }

  private static func sectors(_ size: UInt64, _ blockSize: Int) -> UInt64 {
    (size - size % UInt64(blockSize)) >> 9
  }

  /// The disk's size in sectors: whole blocks only.
  package var sectorCount: UInt64 { capacity.load(ordering: .relaxed) }

  /// Reads the image's size, and notifies the observers if the disk's has changed.
  package func refreshSize() {
    do throws(HostError) {
      try file.refreshSize()
    } catch {
      faults.report("cannot read the size: \(error)")
      return
    }
    let now = Self.sectors(file.size, blockSize)
    let before = capacity.exchange(now, ordering: .relaxed)
    guard before != now else { return }
    options.notice("\(file.path) was resized: the disk has \(now << 9) bytes now, and had \(before << 9)")
    for observer in observers.withLock({ $0 }) { observer() }
  }

  /// A read came to the image's end before the disk's: the size is read again, and reported.
  package func endedEarly(_ position: UInt64) {
    refreshSize()
    faults.report("\(file.path) ends at byte \(position): it has become smaller")
  }

  package func observe(_ changed: @escaping @Sendable () -> Void) {
    observers.withLock { $0.append(changed) }
  }

  /// Whether a driver may discard blocks.
  package var canDiscard: Bool { options.discard && file.supportsDiscard }
}
