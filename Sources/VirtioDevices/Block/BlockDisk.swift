internal import HostIO
internal import Synchronization
internal import Virtio

/// What all queues of a block device share: the image, its size now, the cache mode, where failures are told.
///
/// Any thread may use it.
final class BlockDisk: Sendable {
  let file: BlockFile
  let options: BlockOptions
  let faults: FaultReporter
  /// Bytes in a block as the driver sees them.
  let blockSize: Int
  private let capacity: Atomic<UInt64>
  let cache: BlockCacheMode
  let image: SharedImage
  private let observers = Mutex<[@Sendable () -> Void]>([])

  init(_ file: BlockFile, _ options: BlockOptions) {
    self.file = file
    self.options = options
    blockSize = options.logicalBlockSize ?? file.geometry.logicalBlock
    faults = FaultReporter(options.report)
    capacity = Atomic(Self.sectors(file.size, blockSize))
    cache = BlockCacheMode(writeback: options.writeback)
    image = SharedImage(file, faults)
  }

  private static func sectors(_ size: UInt64, _ blockSize: Int) -> UInt64 {
    (size - size % UInt64(blockSize)) >> UInt64(BlockLayout.sectorShift)
  }

  /// The disk's size in sectors: whole blocks only.
  var sectorCount: UInt64 { capacity.load(ordering: .relaxed) }

  /// Looks at the image's size, and tells the observers if the disk's has changed.
  func refreshSize() {
    do throws(HostError) {
      try file.refreshSize()
    } catch {
      faults.report("cannot tell the size: \(error)")
      return
    }
    let now = Self.sectors(file.size, blockSize)
    let before = capacity.exchange(now, ordering: .relaxed)
    guard before != now else { return }
    for observer in observers.withLock({ $0 }) { observer() }
  }

  func observe(_ changed: @escaping @Sendable () -> Void) {
    observers.withLock { $0.append(changed) }
  }
}
