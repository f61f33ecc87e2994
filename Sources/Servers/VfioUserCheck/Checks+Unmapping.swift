internal import Examination

extension Check {
  /// DMA_UNMAP for any device.
  static let unmapping: [Check] = [
    Check("unmap-unknown", "DMA_UNMAP", "The end of what was never mapped is a success: QEMU's AMD-Vi asks for it.") {
      context throws(Finding) in
      let session = try context.session()
      try session.map(ClientMemory.base, 4096)
      // All of the address space, in pieces of powers of two, but for the one with the mapping.
      var count = 0
      for bit in 12..<64 as Range<UInt64> where bit != 32 {
        let reaction = try session.tryUnmap(1 << bit, 1 << bit)
        guard case .answered = reaction else {
          throw .broken(
            "the end of \(hex(UInt64(1) << bit)) bytes at the same address, where nothing is mapped: \(try session.connection.survived(reaction)); behind AMD-Vi every change of a domain would fail"
          )
        }
        count += 1
      }
      try session.unmap(ClientMemory.base, 4096)
      return "\(count) ranges"
    },
    Check("unmap-several", "DMA_UNMAP", "What lies inside a range goes, however many mappings it is.") {
      context throws(Finding) in
      let session = try context.session()
      for n in 0..<8 as Range<UInt64> { try session.map(ClientMemory.base + n * 8192, 4096, offset: n * 4096) }
      let reaction = try session.tryUnmap(ClientMemory.base, 16 * 4096)
      guard case .answered = reaction else {
        throw .broken("the end of eight mappings in one range: \(try session.connection.survived(reaction))")
      }
      // Where they were is room again.
      try session.map(ClientMemory.base, 16 * 4096)
      return "eight at once"
    },
    Check("unmap-part", "DMA_UNMAP", "A part of a mapping is refused, and then all of it stays, or it goes.") {
      context throws(Finding) in
      let session = try context.session()
      try session.mapVisibly(ClientMemory.base, 0x4000)
      let reaction = try session.connection.provoke(.unmapDMA, Wire.unmap(ClientMemory.base + 0x1000, 0x1000))
      let said = try session.connection.survived(reaction)
      if reaction == .closed { return said }
      let isThere = try session.isMapped(ClientMemory.base + 0x1000, 0x1000)
      if case .answered = reaction {
        try expect(!isThere, "the end of a part was acknowledged, and there is no room there")
      } else {
        try expect(isThere, "the end of a part was refused, and there is room there")
      }
      return said
    },
    Check("unmap-all", "DMA_UNMAP", "With the flag for it everything goes, whatever the range.") {
      context throws(Finding) in
      let session = try context.session()
      try session.map(ClientMemory.base, 0x4000)
      try session.map(1 << 50, 0x4000)
      let reaction = try session.tryUnmap(0, 0, flags: MapFlags.everything)
      guard case .answered = reaction else { throw .notOffered(try session.connection.survived(reaction)) }
      try session.map(ClientMemory.base, 0x8000)
      try session.map(1 << 50, 0x8000)
      return "two mappings"
    },
    Check("unmap-dirty", "DMA_UNMAP", "A bitmap of dirty pages, which takes migration, is refused or does no harm.") {
      context throws(Finding) in
      let session = try context.session()
      try session.map(ClientMemory.base, 0x4000)
      let payload = Wire.unmap(ClientMemory.base, 0x4000, flags: MapFlags.dirtyBitmap)
      return try session.connection.survived(try session.connection.provoke(.unmapDMA, payload))
    },
    Check("unmap-empty", "DMA_UNMAP", "A range of no bytes is refused or does no harm.") { context throws(Finding) in
      let session = try context.session()
      try session.mapVisibly(ClientMemory.base, 0x4000)
      let reaction = try session.connection.provoke(.unmapDMA, Wire.unmap(ClientMemory.base, 0))
      let said = try session.connection.survived(reaction)
      if reaction == .closed { return said }
      try expect(try session.isMapped(ClientMemory.base, 0x4000), "the mapping that begins there has gone")
      return said
    },
    Check("unmap-wraps", "DMA_UNMAP", "A range that passes the end of the address space is refused, or ends there.") {
      context throws(Finding) in
      let session = try context.session()
      try session.mapVisibly(ClientMemory.base, 0x4000)
      let reaction = try session.connection.provoke(.unmapDMA, Wire.unmap(UInt64.max - 4095, 1 << 40))
      let said = try session.connection.survived(reaction)
      if reaction == .closed { return said }
      try expect(try session.isMapped(ClientMemory.base, 0x4000), "a mapping behind the wrap has gone")
      return said
    },
    Check("unmap-short", "DMA_UNMAP", "A payload that is too short is refused.") { context throws(Finding) in
      let connection = try context.connection()
      return try connection.refused(
        try connection.provoke(.unmapDMA, Array(Wire.unmap(ClientMemory.base, 4096).prefix(23))),
        "DMA_UNMAP with a payload of 23 bytes")
    },
  ]
}
