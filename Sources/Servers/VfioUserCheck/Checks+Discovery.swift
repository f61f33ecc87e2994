internal import DMA
internal import Examination
internal import HostIO

extension Check {
  /// What a client learns of a device.
  static let discovery: [Check] = [
    Check("info", "GET_INFO", "The device is a PCI device, with the regions and interrupts of one.") {
      context throws(Finding) in
      let info = try context.connection().ask(.getInfo, Wire.words(16, 0, 0, 0))
      try expect(info.count == 16, "its reply has \(info.count) bytes, not 16")
      let (size, flags, regions, interrupts) = (
        Wire.word(info, 0), Wire.word(info, 4), Wire.word(info, 8), Wire.word(info, 12)
      )
      try expect(size == 16, "the size that its reply needs is said to be \(size)")
      try expect(flags & 2 != 0, "it says that it is no PCI device: its flags are \(hex(flags))")
      try expect(regions > Part.configuration, "it has \(regions) regions: none is the configuration space")
      try expect(regions <= 64 && interrupts <= 64, "it has \(regions) regions and \(interrupts) kinds of interrupts")
      return "\(regions) regions and \(interrupts) kinds of interrupts\(flags & 1 != 0 ? ", and it can be reset" : "")"
    },
    short("info-short", "GET_INFO", .getInfo, Wire.words(16, 0, 0, 0)),
    Check(
      "region-info", "GET_REGION_INFO", "Each region is described, and the configuration space can be read and written."
    ) {
      context throws(Finding) in
      let connection = try context.connection()
      var said: [String] = []
      for region in context.regions {
        let (payload, _) = try described(connection, region.index)
        try expect(Wire.word(payload, 8) == region.index, "asked for region \(region.index), it describes another")
        try expect(Wire.long(payload, 16) == region.size, "the size of region \(region.index) changes")
        if region.size > 0 { said.append("\(region.index): \(region.size)") }
      }
      guard let space = context.region(Part.configuration) else { throw .broken("there is no configuration space") }
      try expect(space.size >= 256, "the configuration space has \(space.size) bytes")
      try expect(space.flags & 3 == 3, "the flags of the configuration space are \(hex(space.flags))")
      return said.joined(separator: ", ")
    },
    Check(
      "region-room", "GET_REGION_INFO", "A reply has no more bytes than there is room for, and says how many it takes."
    ) { context throws(Finding) in
      let connection = try context.connection()
      for region in context.regions {
        let small = try connection.ask(.getRegionInfo, Wire.region(region.index, room: 32))
        try expect(small.count == 32, "with room for 32 bytes its reply has \(small.count)")
        let needed = Wire.word(small, 0)
        try expect(needed >= 32, "it says that the reply takes \(needed) bytes")
        let whole = try connection.ask(.getRegionInfo, Wire.region(region.index, room: max(needed, 4096)))
        try expect(
          whole.count == Int(needed),
          "it said that region \(region.index) takes \(needed) bytes, and sends \(whole.count)")
      }
      return "\(context.regions.count) regions, asked for with room for 32 bytes and for more"
    },
    Check(
      "region-sparse", "GET_REGION_INFO", "What can be mapped of a region lies in it, is whole pages, and has a file."
    ) {
      context throws(Finding) in
      let connection = try context.connection()
      var said: [String] = []
      for region in context.regions where region.flags & 0xc != 0 {
        let (payload, areas) = try described(connection, region.index)
        let maps = region.flags & 4 != 0
        try expect(
          maps == (connection.passed.count > 0), "region \(region.index) can be mapped, and no descriptor came")
        guard maps, let descriptor = connection.passed.rawValues.first else { continue }
        let base = Wire.long(payload, 24)
        for (offset, size) in areas ?? [(0, region.size)] {
          let (end, wraps) = offset.addingReportingOverflow(size)
          try expect(
            size > 0 && !wraps && end <= region.size && offset % 4096 == 0 && size % 4096 == 0,
            "\(size) bytes at \(hex(offset)) of region \(region.index) are said to be mappable")
          guard let byteCount = Int(exactly: size), byteCount <= 1 << 30 else { continue }
          let mapping = try rethrowing(
            HostMapping(descriptor: descriptor, offset: base &+ offset, byteCount: byteCount, writable: false),
            saying: {
              Finding.broken("\(size) bytes at \(hex(offset)) of region \(region.index) cannot be mapped: \($0)")
            })
          var first: [UInt8] = [0]
          var span = first.mutableSpan
          _ = mapping.copy(from: byteCount - 1, into: &span)
          try expect(mapping.lostPages == 0, "the file of region \(region.index) ends before \(hex(offset + size))")
          said.append("\(size) bytes at \(hex(offset)) of region \(region.index)")
        }
      }
      guard !said.isEmpty else { throw .notOffered("no region can be mapped") }
      return said.joined(separator: ", ")
    },
    Check("region-index", "GET_REGION_INFO", "A region that does not exist is not described.") {
      context throws(Finding) in
      let connection = try context.connection()
      let info = try connection.ask(.getInfo, Wire.words(16, 0, 0, 0))
      for index in [Wire.word(info, 8), 0x7fff_ffff, .max] as [UInt32] {
        _ = try connection.refused(try connection.provoke(.getRegionInfo, Wire.region(index)), "region \(index)")
      }
      return "three were refused"
    },
    short("region-info-short", "GET_REGION_INFO", .getRegionInfo, Wire.region(Part.configuration)),
    Check("interrupt-info", "GET_IRQ_INFO", "Each kind of interrupt is described, and what there is takes eventfds.") {
      context throws(Finding) in
      let connection = try context.connection()
      var said: [String] = []
      for index in context.interrupts.indices {
        let reaction = try connection.provoke(.getInterruptInfo, Wire.words(16, 0, UInt32(index), 0))
        guard case .answered(let payload) = reaction else {
          try expect(index > 2, "interrupts of kind \(index) are not described")
          continue
        }
        let (flags, count) = (Wire.word(payload, 4), Wire.word(payload, 12))
        try expect(payload.count == 16, "its reply has \(payload.count) bytes, not 16")
        try expect(Wire.word(payload, 8) == UInt32(index), "asked for kind \(index), it describes another")
        let most: UInt32 = index == 2 ? 2048 : 32
        try expect(count <= most, "there are \(count) interrupts of kind \(index)")
        try expect(count == 0 || flags & 1 != 0, "interrupts of kind \(index) take no eventfds")
        if count > 0 { said.append("\(index): \(count)") }
      }
      return said.isEmpty ? "no interrupts" : said.joined(separator: ", ")
    },
    Check("interrupt-index", "GET_IRQ_INFO", "A kind of interrupt that does not exist is not described.") {
      context throws(Finding) in
      let connection = try context.connection()
      let info = try connection.ask(.getInfo, Wire.words(16, 0, 0, 0))
      for index in [Wire.word(info, 12), .max] as [UInt32] {
        let reaction = try connection.provoke(.getInterruptInfo, Wire.words(16, 0, index, 0))
        _ = try connection.refused(reaction, "kind \(index)")
      }
      return "two were refused"
    },
    short("interrupt-info-short", "GET_IRQ_INFO", .getInterruptInfo, Wire.words(16, 0, 0, 0)),
  ]

  /// A command whose payload ends early, or has no room for a reply, is refused.
  private static func short(_ name: String, _ rule: String, _ command: Command, _ good: [UInt8]) -> Check {
    Check(name, rule, "A payload that is too short is refused, and so is too little room for the reply.") {
      context throws(Finding) in
      let connection = try context.connection()
      for count in [0, 3, good.count - 1] {
        let reaction = try connection.provoke(command, Array(good.prefix(count)))
        _ = try connection.refused(reaction, "\(command.name) with a payload of \(count) bytes")
        if reaction == .closed { return "it closed the connection" }
      }
      let room = try connection.provoke(command, Wire.words(4) + good.dropFirst(4))
      _ = try connection.refused(room, "\(command.name) with room for 4 bytes")
      return "payloads of 0, 3 and \(good.count - 1) bytes were refused, and room for 4"
    }
  }

  /// A region's description, and the areas of its sparse-mmap capability.
  private static func described(
    _ connection: Connection, _ index: UInt32
  ) throws(Finding) -> ([UInt8], [(offset: UInt64, size: UInt64)]?) {
    let payload = try connection.ask(.getRegionInfo, Wire.region(index, room: 64 << 10))
    try expect(payload.count >= 32, "the description of region \(index) has \(payload.count) bytes")
    let flags = Wire.word(payload, 4)
    guard flags & 8 != 0 else { return (payload, nil) }
    var areas: [(offset: UInt64, size: UInt64)]?
    var at = Int(Wire.word(payload, 12))
    for _ in 0..<16 where at != 0 {
      try expect(at >= 32 && at + 8 <= payload.count, "a capability of region \(index) is at byte \(at)")
      if Wire.number(payload, at, UInt16.self) == 1 {
        let count = Int(Wire.word(payload, at + 8))
        try expect(
          count > 0 && count <= (payload.count - at - 16) / 16,
          "the sparse-mmap capability of region \(index) counts \(count) areas")
        areas = (0..<count).map { (Wire.long(payload, at + 16 + 16 * $0), Wire.long(payload, at + 24 + 16 * $0)) }
      }
      let next = Int(Wire.word(payload, at + 4))
      try expect(next == 0 || next > at, "the capabilities of region \(index) lead in a circle")
      at = next
    }
    try expect(at == 0, "the capabilities of region \(index) do not end")
    return (payload, areas)
  }
}
