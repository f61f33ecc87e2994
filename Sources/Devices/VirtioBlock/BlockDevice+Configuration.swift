internal import HostIO
internal import Storage
internal import Virtio

extension BlockDevice {
  static func check(_ options: BlockOptions) throws(DiskError) {
    guard (1...256).contains(options.queueCount) else {
      throw .option("queueCount", "must be 1 to 256, not \(options.queueCount)")
    }
    guard (2...32768).contains(options.queueSize) else {
      throw .option("queueSize", "must be 2 to 32768, not \(options.queueSize)")
    }
    if let most = options.maxSegments, !(1...32766).contains(most) {
      throw .option("maxSegments", "must be 1 to 32766, not \(most)")
    }
    if let most = options.maxSegmentSize, most < 4096 {
      throw .option("maxSegmentSize", "must be at least 4096, not \(most)")
    }
  }

  static func features(_ disk: BlockDisk, _ options: BlockOptions) -> Features {
    // SIZE_MAX tells drivers to cut requests smaller: without a reason it only costs. LIFETIME has no source in a file.
    var features: Features = [.ring, .blockSegMax, .blockGeometry, .blockBlockSize, .blockFlush, .blockTopology]
    if options.maxSegmentSize != nil { features.insert(.blockSizeMax) }
    if options.cacheIsConfigurable { features.insert(.blockConfigWCE) }
    if options.queueCount > 1 { features.insert(.blockMultiqueue) }
    if disk.file.isReadOnly {
      features.insert(.blockReadOnly)
    } else {
      features.insert(.blockWriteZeroes)
      if disk.canDiscard { features.insert(.blockDiscard) }
      if disk.file.supportsSecureErase { features.insert(.blockSecureErase) }
    }
    return features
  }

  /// All but capacity and cache mode.
  static func configuration(_ disk: BlockDisk, _ options: BlockOptions) -> BlockConfiguration {
    let geometry = disk.file.geometry
    let block = disk.blockSize
    var c = BlockConfiguration()
    c.sizeMax = options.maxSegmentSize ?? 0
    c.segMax = UInt32(options.maxSegments ?? max(1, min(Int(options.queueSize), 128) - 2))
    c.blockSize = UInt32(block)
    let exponent = max(0, geometry.physicalBlock / block).leadingBit
    c.physicalBlockExponent = UInt8(clamping: exponent)
    c.alignmentOffset = UInt8(clamping: max(0, geometry.alignmentOffset) / block)
    c.minimumIO = UInt16(clamping: geometry.minimumIO / block)
    c.optimalIO = UInt32(clamping: geometry.optimalIO / block)
    c.queueCount = UInt16(options.queueCount)
    guard !disk.file.isReadOnly else { return c }
    let unit = UInt32(clamping: max(geometry.discardGranularity, block) / BlockLayout.sectorSize)
    if disk.canDiscard {
      c.maxDiscardSectors = DiskRangeAction.maxDiscardSectors
      c.maxDiscardSegments = UInt32(DiskRangeAction.maxRanges)
      c.discardAlignment = unit
      c.writeZeroesMayUnmap = 1
    }
    c.maxWriteZeroesSectors = DiskRangeAction.maxWriteZeroesSectors
    c.maxWriteZeroesSegments = UInt32(DiskRangeAction.maxRanges)
    if disk.file.supportsSecureErase {
      c.maxSecureEraseSectors = DiskRangeAction.maxDiscardSectors
      c.maxSecureEraseSegments = UInt32(DiskRangeAction.maxRanges)
      c.secureEraseAlignment = unit
    }
    return c
  }

  /// The size, and the shape a disk of that size had when disks had shapes.
  static func setCapacity(_ c: inout BlockConfiguration, _ sectors: UInt64) {
    c.capacity = sectors
    c.heads = 16
    c.sectors = 63
    c.cylinders = UInt16(clamping: sectors / (16 * 63))
  }
}

extension Int {
  /// The place of the highest bit set; 0 for 0 and below.
  fileprivate var leadingBit: Int { self <= 0 ? 0 : Int.bitWidth - 1 - leadingZeroBitCount }
}
