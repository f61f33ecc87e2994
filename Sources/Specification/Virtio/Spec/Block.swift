/// Feature bits of a block device (§5.2.3).
extension Features {
  /// `size_max`: largest segment.
  public static var blockSizeMax: Self { Self(bit: 1) }
  /// `seg_max`: most segments in a request.
  public static var blockSegMax: Self { Self(bit: 2) }
  /// Cylinders, heads and sectors are in the configuration space.
  public static var blockGeometry: Self { Self(bit: 4) }
  /// Nothing can be written.
  public static var blockReadOnly: Self { Self(bit: 5) }
  /// `blk_size`: the disk's block size.
  public static var blockBlockSize: Self { Self(bit: 6) }
  /// The driver may ask for flushes.
  public static var blockFlush: Self { Self(bit: 9) }
  /// Physical blocks and good request sizes are in the configuration space.
  public static var blockTopology: Self { Self(bit: 10) }
  /// The driver may switch between writeback and writethrough.
  public static var blockConfigWCE: Self { Self(bit: 11) }
  /// There is more than one request queue.
  public static var blockMultiqueue: Self { Self(bit: 12) }
  /// Discards are served.
  public static var blockDiscard: Self { Self(bit: 13) }
  /// Write zeroes requests are served.
  public static var blockWriteZeroes: Self { Self(bit: 14) }
  /// Wear can be asked for.
  public static var blockLifetime: Self { Self(bit: 15) }
  /// Secure erase requests are served.
  public static var blockSecureErase: Self { Self(bit: 16) }
  /// The disk has zones.
  public static var blockZoned: Self { Self(bit: 17) }
}

/// What a request asks for (§5.2.6).
@frozen public struct BlockRequestType: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt32
  @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// The driver reads the disk.
  @inlinable public static var read: Self { Self(rawValue: 0) }
  /// The driver writes the disk.
  @inlinable public static var write: Self { Self(rawValue: 1) }
  /// Completed writes become durable.
  @inlinable public static var flush: Self { Self(rawValue: 4) }
  /// The driver reads the disk's identity, 20 bytes.
  @inlinable public static var getID: Self { Self(rawValue: 8) }
  /// The driver reads how worn the disk is.
  @inlinable public static var getLifetime: Self { Self(rawValue: 10) }
  /// Ranges lose their contents.
  @inlinable public static var discard: Self { Self(rawValue: 11) }
  /// Ranges become zero.
  @inlinable public static var writeZeroes: Self { Self(rawValue: 13) }
  /// Ranges lose their contents, copies included.
  @inlinable public static var secureErase: Self { Self(rawValue: 14) }
}

/// The last byte of every request, written by the device (§5.2.6).
@frozen public struct BlockStatus: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt8
  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }
  /// Done.
  @inlinable public static var ok: Self { Self(rawValue: 0) }
  /// Not done, or only in part.
  @inlinable public static var ioError: Self { Self(rawValue: 1) }
  /// Not a request that this device serves.
  @inlinable public static var unsupported: Self { Self(rawValue: 2) }
}

/// Sizes of what requests consist of, in bytes unless said (§5.2.6).
public enum BlockLayout {
  /// Sectors are 512 bytes in the protocol, with any block size of the disk.
  @inlinable public static var sectorShift: Int { 9 }
  /// A sector, in bytes.
  @inlinable public static var sectorSize: Int { 512 }
  /// `type`, `reserved` and `sector`, at the start of the device-readable bytes.
  @inlinable public static var headerSize: Int { 16 }
  /// Where `sector` is in the header.
  @inlinable public static var sectorOffset: Int { 8 }
  /// One segment of a discard, write zeroes or secure erase request: `sector`, `num_sectors`, `flags`.
  @inlinable public static var rangeSize: Int { 16 }
  /// The device ID string, padded with NUL.
  @inlinable public static var idSize: Int { 20 }
  /// The configuration space, zoned characteristics included.
  @inlinable public static var configurationSize: Int { 96 }
  /// Where the one field that a driver may write, `writeback`, is in the configuration space.
  @inlinable public static var writebackOffset: Int { 32 }
}

/// One segment of a discard, write zeroes or secure erase request (§5.2.6).
@frozen public struct BlockRange: Hashable, Sendable {
  /// Its first sector.
  public var sector: UInt64
  /// How many sectors.
  public var sectorCount: UInt32
  /// Bit 0 is ``unmap``; the others are reserved.
  public var flags: UInt32
  /// In ``flags``: the range may be deallocated.
  @inlinable public static var unmap: UInt32 { 1 }

  @inlinable public init(sector: UInt64, sectorCount: UInt32, flags: UInt32 = 0) {
    self.sector = sector
    self.sectorCount = sectorCount
    self.flags = flags
  }
}
