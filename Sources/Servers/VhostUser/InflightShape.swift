package import DMA
package import HostIO

/// How the pieces of an ``InflightRegion`` made here lie, and the block behind them that says so to the region's next
/// user.
///
/// The block is the region's last 64 bytes: 0 magic (8 bytes) · 8 bytes from one piece to the next (4 bytes) · 12
/// descriptors in each. The vhost-user text knows no such block, and needs none: the pieces before it are as the text
/// has them.
package struct InflightShape: Hashable {
  /// Descriptors a piece has room for: 1...32768.
  package var capacity: UInt16
  /// Bytes from one virtqueue's piece to the next.
  package var stride: Int

  private static let magic: UInt64 = 0x7468_6769_6c66_6e49
  private static let blockSize = 64

  /// Pieces for rings of up to `capacity` descriptors.
  package init(capacity: UInt16, packed: Bool) {
    self.capacity = capacity
    stride = Self.pieceSize(capacity, packed: packed)
  }

  /// The description in the block at the region's end; nil if there is none, or if it is impossible.
  package init?(noted mapping: HostMapping, queueCount: UInt16) {
    let place = mapping.byteCount - Self.blockSize
    guard place > 0, place % 64 == 0, let block = mapping.cells(from: place, byteCount: Self.blockSize),
      block.load64(at: 0) == Self.magic
    else { return nil }
    capacity = block.load16(at: 12)
    stride = Int(block.load32(at: 8))
    guard capacity > 0, capacity <= 32768, stride % 64 == 0, stride >= Self.pieceSize(capacity, packed: false),
      Int(queueCount) * stride <= place
    else { return nil }
  }

  /// Bytes a piece needs for `size` descriptors.
  package static func pieceSize(_ size: UInt16, packed: Bool) -> Int {
    let bytes = packed ? 32 + 32 * Int(size) : 16 + 16 * Int(size)
    return (bytes + 63) & ~63
  }

  /// Bytes of a region for `queueCount` virtqueues, the block included.
  package func byteCount(queueCount: UInt16) -> Int { Int(queueCount) * stride + Self.blockSize }

  /// A file with pieces for `queueCount` virtqueues, zeroed, and the block.
  package func makeFile(queueCount: UInt16) throws(HostError) -> MemoryFile {
    let byteCount = byteCount(queueCount: queueCount)
    let file = try MemoryFile(name: "sluice-inflight", size: UInt64(byteCount), seals: [.shrink, .grow])
    let mapping = try rethrowing(
      HostMapping(descriptor: file.descriptor.rawValue, offset: 0, byteCount: byteCount),
      as: { (error: MappingError) in HostError(error) })
    guard let block = mapping.cells(from: byteCount - Self.blockSize, byteCount: Self.blockSize) else {
      preconditionFailure("the block is a region's end")
    }
    block.store32(UInt32(stride), at: 8)
    block.store16(capacity, at: 12)
    block.store64(Self.magic, at: 0)
    return file
  }
}
