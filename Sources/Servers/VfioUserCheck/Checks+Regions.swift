internal import Examination

extension Check {
  /// REGION_READ, REGION_WRITE and RESET.
  static let regions: [Check] = [
    Check("config-space", "REGION_READ", "The configuration space is that of a PCI function, and its capabilities end.")
    {
      context throws(Finding) in
      let session = try context.session()
      let vendor = try session.configuration(0, 2)
      try expect(vendor != 0 && vendor != 0xffff, "the vendor is \(hex(vendor))")
      let kind = try session.configuration(14, 1) & 0x7f
      try expect(kind == 0, "the header is of type \(kind)")
      var found: [String] = []
      if try session.configuration(6, 2) & 0x10 != 0 {
        var at = try session.configuration(0x34, 1)
        for _ in 0..<48 where at != 0 {
          try expect(at >= 0x40 && at & 3 == 0, "a capability is at \(hex(at))")
          found.append(hex(try session.configuration(UInt64(at), 1)))
          at = try session.configuration(UInt64(at) + 1, 1)
        }
        try expect(at == 0, "the capabilities do not end")
      }
      return
        "\(context.identity.word), class \(hex(context.identity.classCode)), capabilities \(found.joined(separator: " "))"
    },
    Check("read-sizes", "REGION_READ", "Reads of all sizes bring the same bytes.") { context throws(Finding) in
      let session = try context.session()
      let whole = try session.read(Part.configuration, 0, 64)
      // The status register is the device's to change.
      for width in [1, 2, 4, 8, 16] as [UInt32] {
        for offset in stride(from: UInt64(0), to: 64, by: Int(width))
        where !(4...7 ~= offset) && offset + UInt64(width) <= 64 {
          let part = try session.read(Part.configuration, offset, width)
          let range = Int(offset)..<Int(offset) + Int(width)
          for place in range where !(4...7).contains(place) {
            try expect(
              part[place - range.lowerBound] == whole[place],
              "byte \(place) of the configuration space is \(hex(part[place - range.lowerBound])) when \(width) are read at once, and \(hex(whole[place])) when 64 are"
            )
          }
        }
      }
      // Neither aligned nor a power of two.
      let odd = try session.read(Part.configuration, 9, 7)
      try expect(odd == Array(whole[9..<16]), "seven bytes from byte 9 on differ from the same bytes of one read")
      return "1, 2, 4, 7, 8, 16 and 64 bytes"
    },
    Check("read-end", "REGION_READ", "A read that crosses a region's end, or starts behind it, is refused.") {
      context throws(Finding) in
      try across(context, .readRegion, data: 0)
    },
    Check("read-nothing", "REGION_READ", "Regions that the device does not have are not read.") {
      context throws(Finding) in
      let connection = try context.connection()
      let absent = context.regions.filter { $0.size == 0 }.map(\.index) + [Part.regions, 0x7fff_ffff, .max]
      for index in absent {
        let reaction = try connection.provoke(.readRegion, Wire.access(index, 0, 1))
        _ = try connection.refused(reaction, "a read of region \(index)")
        if reaction == .closed { return "it closed the connection" }
      }
      return "\(absent.count) were refused"
    },
    Check("read-huge", "REGION_READ", "A read of more than the server transfers at once is refused.") {
      context throws(Finding) in
      var said = ""
      let limit = context.offer.number("max_data_xfer_size", 1 << 20)
      for count in [limit + 1, 0x7fff_ffff, 0xffff_ffff, 0xffff_fff0] {
        let connection = try context.connection()
        let reaction = try connection.provoke(.readRegion, Wire.access(0, 0, UInt32(clamping: count)))
        said = try connection.refused(reaction, "a read of \(count) bytes")
        connection.close()
      }
      return said
    },
    Check("read-empty", "REGION_READ", "A read of no bytes is refused or brings none.") { context throws(Finding) in
      let connection = try context.connection()
      let reaction = try connection.provoke(.readRegion, Wire.access(Part.configuration, 0, 0))
      if case .answered(let payload) = reaction {
        try expect(payload.count == 16, "its reply has a payload of \(payload.count) bytes, not 16")
      }
      return try connection.survived(reaction)
    },
    Check("read-short", "REGION_READ", "A command whose payload is too short is refused.") { context throws(Finding) in
      let connection = try context.connection()
      return try connection.refused(
        try connection.provoke(.readRegion, Array(Wire.access(Part.configuration, 0, 4).prefix(12))),
        "REGION_READ with a payload of 12 bytes")
    },
    Check("write", "REGION_WRITE", "What is written to the command register is read back, and no fixed field changes.")
    {
      context throws(Finding) in
      let session = try context.session()
      for value in [0x0006, 0x0000, 0x0006, 0x0002] as [UInt32] {
        try session.write(Part.configuration, Session.command, Wire.bytes(UInt16(value)))
        let read = try session.configuration(Session.command, 2) & 6
        try expect(read == value, "the command register has \(hex(read)) after \(hex(value)) was written")
      }
      let before = try session.read(Part.configuration, 0, 4)
      try session.write(Part.configuration, 0, [0x11, 0x22, 0x33, 0x44])
      try expect(try session.read(Part.configuration, 0, 4) == before, "the vendor's number was overwritten")
      return "memory space and bus master, off and on; vendor and device stay"
    },
    Check("write-end", "REGION_WRITE", "A write that crosses a region's end, or starts behind it, is refused.") {
      context throws(Finding) in
      try across(context, .writeRegion, data: 0)
    },
    Check("write-lies", "REGION_WRITE", "A write whose count is not that of its data is refused.") {
      context throws(Finding) in
      var said = ""
      for (count, data) in [(4, 2), (2, 4), (0xffff_ffff, 4), (0, 4), (0x1_0000, 0)] as [(UInt32, Int)] {
        let connection = try context.connection()
        let reaction = try connection.provoke(
          .writeRegion, Wire.access(Part.configuration, Session.command, count) + [UInt8](repeating: 0, count: data))
        said =
          count == 0
          ? try connection.survived(reaction)
          : try connection.refused(reaction, "a write that says \(count) bytes and has \(data)")
        connection.close()
      }
      return said
    },
    Check("write-posted", "No_reply", "A write that wants no reply is done, and gets none.") {
      context throws(Finding) in
      let session = try context.session()
      for value in [0x0006, 0x0002, 0x0006] as [UInt16] {
        _ = try session.connection.post(
          Command.writeRegion.rawValue, Wire.access(Part.configuration, Session.command, 2) + Wire.bytes(value),
          flags: Header.noReply)
        // The reply that comes next is the read's, or this finds another.
        let read = try session.configuration(Session.command, 2) & 6
        try expect(read == UInt32(value), "the command register has \(hex(read)) after \(hex(value)) was written")
      }
      return "three were done, and the next reply was the next command's"
    },
    Check("posted-wrong", "No_reply", "A command that wants no reply gets none when it fails.") {
      context throws(Finding) in
      let connection = try context.connection()
      for (command, payload) in [
        (Command.writeRegion, Wire.access(Part.regions, 0, 2) + [0, 0]), (.readRegion, Wire.access(0x7fff, 0, 4)),
        (.unmapDMA, [1]), (.setInterrupts, Wire.interrupts(0, 99, 0, 1)), (.getInfo, Wire.words(16, 0, 0, 0)),
      ] {
        guard try connection.post(command.rawValue, payload, flags: Header.noReply) != nil else {
          return "it closed the connection"
        }
      }
      return try connection.isAnswering() ? "five got none, and the next command its own" : "it closed the connection"
    },
    Check("write-several", "WRITE_MULTI", "Several writes in a message are done in order.") { context throws(Finding) in
      guard context.offer.writesSeveral else { throw .notOffered("write_multiple is not among its capabilities") }
      let session = try context.session()
      func item(_ value: UInt16) -> [UInt8] {
        Wire.access(Part.configuration, Session.command, 2) + Wire.bytes(value) + [0, 0, 0, 0, 0, 0]
      }
      let payload = try session.connection.ask(
        .writeRegions, Wire.bytes(UInt64(3)) + item(6) + item(0) + item(2))
      try expect(Wire.long(payload, 0) == 3, "it says that \(Wire.long(payload, 0)) of 3 writes were done")
      let read = try session.configuration(Session.command, 2) & 6
      try expect(read == 2, "the command register has \(hex(read)) after 6, 0 and 2 were written")
      _ = try session.connection.post(
        Command.writeRegions.rawValue, Wire.bytes(UInt64(2)) + item(0) + item(6), flags: Header.noReply)
      try expect(try session.configuration(Session.command, 2) & 6 == 6, "writes that want no reply were not done")
      return "three, and two that want no reply"
    },
    Check("write-several-lies", "WRITE_MULTI", "A count that the payload contradicts is refused.") {
      context throws(Finding) in
      guard context.offer.writesSeveral else { throw .notOffered("write_multiple is not among its capabilities") }
      let item = Wire.access(Part.configuration, Session.command, 2) + [2, 0, 0, 0, 0, 0, 0, 0]
      let wide = Wire.access(Part.configuration, Session.command, 4096) + [UInt8](repeating: 0, count: 8)
      var said = ""
      for payload in [
        Wire.bytes(UInt64(2)) + item, Wire.bytes(UInt64.max) + item, Wire.bytes(UInt64(1) << 61) + item,
        Wire.bytes(UInt64(1)) + wide, [1, 0, 0],
      ] {
        let connection = try context.connection()
        said = try connection.refused(try connection.provoke(.writeRegions, payload), "REGION_WRITE_MULTI that lies")
        connection.close()
      }
      return said
    },
    Check("bar-size", "REGION_WRITE", "A BAR's size, found as drivers find it, is the region's.") {
      context throws(Finding) in
      let session = try context.session()
      var said: [String] = []
      var index: UInt32 = 0
      while index < 6 {
        let at = 0x10 + 4 * UInt64(index)
        let before = try session.configuration(at, 4)
        let isWide = before & 7 == 4
        try session.write(Part.configuration, at, [0xff, 0xff, 0xff, 0xff])
        let mask = try session.configuration(at, 4) & (before & 1 == 1 ? ~3 : ~15)
        try session.write(Part.configuration, at, Wire.bytes(before))
        let size = context.region(index)?.size ?? 0
        if mask != 0 {
          let found = UInt64(~mask &+ 1)
          try expect(
            found == size || isWide && size >= 1 << 32, "BAR \(index) has \(found) bytes, and its region \(size)")
          said.append("\(index): \(found)")
        } else {
          try expect(size == 0, "region \(index) has \(size) bytes, and there is no such BAR")
        }
        index += isWide ? 2 : 1
      }
      guard !said.isEmpty else { throw .notOffered("the device has no BAR") }
      return said.joined(separator: ", ")
    },
    Check("reset", "RESET", "RESET takes back what was written, and is answered without a payload.") {
      context throws(Finding) in
      guard context.deviceFlags & 1 != 0 else { throw .notOffered("the device says that it cannot be reset") }
      let session = try context.session()
      try session.write(Part.configuration, Session.command, [6, 0])
      let payload = try session.connection.ask(.reset)
      try expect(payload.isEmpty, "its reply has a payload of \(payload.count) bytes")
      let read = try session.configuration(Session.command, 2)
      try expect(read & 4 == 0, "the device may still master the bus: its command register has \(hex(read))")
      return "the command register is \(hex(read)) again"
    },
  ]

  private static func across(_ context: CheckContext, _ command: Command, data: UInt8) throws(Finding) -> String {
    let connection = try context.connection()
    var count = 0
    for region in context.regions where region.size > 0 {
      for (offset, width) in [
        (region.size, 1), (region.size - 1, 2), (region.size &+ 4096, 4), (.max, 8), (.max - 3, 4),
      ]
        as [(UInt64, UInt32)]
      {
        let bytes = command == .writeRegion ? [UInt8](repeating: data, count: Int(width)) : []
        let reaction = try connection.provoke(command, Wire.access(region.index, offset, width) + bytes)
        _ = try connection.refused(reaction, "\(width) bytes at \(hex(offset)) of region \(region.index)")
        if reaction == .closed { return "it closed the connection" }
        count += 1
      }
    }
    return "\(count) were refused"
  }
}
