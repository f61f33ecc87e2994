internal import DMA

/// The configuration space of a block device (§5.2.4), zoned characteristics always zero.
///
/// Every field holds a value whether its feature is offered or not.
public struct BlockConfiguration: Hashable, Sendable {
  /// The disk's size, in sectors of 512 bytes.
  public var capacity: UInt64 = 0
  /// Largest segment, bytes.
  public var sizeMax: UInt32 = 0
  /// Most data segments in a request.
  public var segMax: UInt32 = 0
  /// The shape of disks that had one; heads and sectors are those of a track.
  public var cylinders: UInt16 = 0
  public var heads: UInt8 = 0
  public var sectors: UInt8 = 0
  /// The disk's block size, bytes.
  public var blockSize: UInt32 = 0
  /// How many logical blocks are in a physical one, as a power of two.
  public var physicalBlockExponent: UInt8 = 0
  /// The first aligned logical block.
  public var alignmentOffset: UInt8 = 0
  /// Smallest efficient request, in logical blocks; 0 unknown.
  public var minimumIO: UInt16 = 0
  /// Best size of a request, in logical blocks; 0 unknown.
  public var optimalIO: UInt32 = 0
  /// 1: a completed write may still be volatile; 0: it is not.
  public var writeback: UInt8 = 0
  /// Request queues.
  public var queueCount: UInt16 = 0
  /// Most sectors in one segment, and most segments.
  public var maxDiscardSectors: UInt32 = 0
  public var maxDiscardSegments: UInt32 = 0
  /// Sectors.
  public var discardAlignment: UInt32 = 0
  /// The same for write zeroes.
  public var maxWriteZeroesSectors: UInt32 = 0
  public var maxWriteZeroesSegments: UInt32 = 0
  /// 1: writing zeroes with the unmap flag may deallocate.
  public var writeZeroesMayUnmap: UInt8 = 0
  /// The same for secure erase.
  public var maxSecureEraseSectors: UInt32 = 0
  public var maxSecureEraseSegments: UInt32 = 0
  /// Sectors.
  public var secureEraseAlignment: UInt32 = 0

  public init() {}

  /// The bytes a driver sees; ``BlockLayout/configurationSize`` of them.
  public var bytes: [UInt8] {
    var out = WireWriter(capacity: BlockLayout.configurationSize)
    out.write(capacity)
    out.write(sizeMax)
    out.write(segMax)
    out.write(cylinders)
    out.write(heads)
    out.write(sectors)
    out.write(blockSize)
    out.write(physicalBlockExponent)
    out.write(alignmentOffset)
    out.write(minimumIO)
    out.write(optimalIO)
    out.write(writeback)
    out.zero(1)
    out.write(queueCount)
    out.write(maxDiscardSectors)
    out.write(maxDiscardSegments)
    out.write(discardAlignment)
    out.write(maxWriteZeroesSectors)
    out.write(maxWriteZeroesSegments)
    out.write(writeZeroesMayUnmap)
    out.zero(3)
    out.write(maxSecureEraseSectors)
    out.write(maxSecureEraseSegments)
    out.write(secureEraseAlignment)
    out.zero(BlockLayout.configurationSize - out.bytes.count)
    return out.bytes
  }
}
