internal import DMA
internal import Examination
internal import HostIO

extension Check {
  /// Messages as such.
  static let framing: [Check] = [
    Check("reply", "header", "A reply repeats the number and the command of its message, whatever they are.") {
      context throws(Finding) in
      let connection = try context.connection()
      let info = Wire.words(16, 0, 0, 0)
      for id in [0, 0xffff, 7, 7] as [UInt16] {
        let header = Header(id: id, command: Command.getInfo.rawValue, size: 32, flags: 0, error: 77)
        try connection.send(header.encoded + info)
        guard case .answered = try connection.reaction(to: id, Command.getInfo.rawValue) else {
          throw .broken("DEVICE_GET_INFO, message \(id), was refused")
        }
      }
      return "0, 65535, and 7 twice"
    },
    Check("in-order", "header", "Commands that come at once are answered each, in their order.") {
      context throws(Finding) in
      let connection = try context.connection()
      var all: [UInt8] = []
      for id in 100..<164 as Range<UInt16> {
        all +=
          Header(id: id, command: Command.getInfo.rawValue, size: 32, flags: 0).encoded + Wire.words(16, 0, 0, 0)
      }
      try connection.send(all)
      for id in 100..<164 as Range<UInt16> {
        guard case .answered = try connection.reaction(to: id, Command.getInfo.rawValue) else {
          throw .broken("DEVICE_GET_INFO, message \(id), was refused")
        }
      }
      return "64"
    },
    Check("pieces", "header", "A message may come in pieces.") { context throws(Finding) in
      let connection = try context.connection()
      let bytes = Header(id: 3, command: Command.getInfo.rawValue, size: 32, flags: 0).encoded + Wire.words(16, 0, 0, 0)
      for range in [0..<3, 3..<16, 16..<17, 17..<32] {
        try connection.send(Array(bytes[range]))
        pause(.milliseconds(3))
      }
      guard case .answered = try connection.reaction(to: 3, Command.getInfo.rawValue) else {
        throw .broken("a message in four pieces was not answered")
      }
      return "in four"
    },
    Check("unknown-command", "header", "A command that does not exist is refused, and the connection goes on.") {
      context throws(Finding) in
      var said: Set<String> = []
      for command in [0, 14, 19, 99, 0xffff] as [UInt16] {
        let connection = try context.connection()
        for payload in [[], [UInt8](repeating: 0, count: 64)] {
          let reaction = try connection.provoke(command, payload)
          said.insert(try connection.refused(reaction, "command \(command)"))
          if reaction == .closed { break }
        }
        connection.close()
      }
      return said.sorted().joined(separator: "; ")
    },
    Check("servers-command", "header", "A command that is the server's to send is refused.") {
      context throws(Finding) in
      let connection = try context.connection()
      for (command, payload) in [
        (Command.readDMA, Wire.bytes(UInt64(0)) + Wire.bytes(UInt64(4096))),
        (.writeDMA, Wire.bytes(UInt64(0)) + Wire.bytes(UInt64(4)) + [1, 2, 3, 4]),
      ] {
        let reaction = try connection.provoke(command, payload)
        _ = try connection.refused(reaction, command.name)
        if reaction == .closed { return "it closed the connection" }
      }
      return "DMA_READ and DMA_WRITE were refused"
    },
    Check("stray-reply", "header", "A reply to nothing does no harm.") { context throws(Finding) in
      let connection = try context.connection()
      for flags in [Header.reply, Header.reply | Header.failed] {
        try connection.send(
          Header(id: 9, command: Command.readDMA.rawValue, size: 32, flags: flags).encoded + Wire.words(0, 0, 0, 0))
      }
      return try connection.isAnswering() ? "it was dropped" : "it closed the connection"
    },
    Check("odd-type", "header", "A message that is neither command nor reply, or has unknown flags, does no harm.") {
      context throws(Finding) in
      var said: Set<String> = []
      for flags in [2, 7, 15, 0xffff_ff00, 0x20] as [UInt32] {
        let connection = try context.connection()
        let header = Header(id: 5, command: Command.getInfo.rawValue, size: 32, flags: flags)
        try connection.send(header.encoded + Wire.words(16, 0, 0, 0))
        // Answered or not: the next connection is what counts.
        connection.close()
        let next = try context.connection()
        if try next.isAnswering() { said.insert("the next client was answered") }
        next.close()
      }
      return said.sorted().joined(separator: "; ")
    },
    Check("size-small", "header", "A message that says it is shorter than a header ends the connection, or is refused.")
    {
      context throws(Finding) in
      for size in [0, 1, 15] as [UInt32] {
        let connection = try context.connection()
        let id = try connection.post(Command.getInfo.rawValue, [], size: size)
        if let id, case .answered = try connection.reaction(to: id, Command.getInfo.rawValue) {
          throw .broken("a message of \(size) bytes was answered as done")
        }
        connection.close()
      }
      return "0, 1 and 15 bytes"
    },
    Check(
      "size-huge", "header", "A message that says it is huge ends the connection, or is refused, before it has come."
    ) {
      context throws(Finding) in
      for size in [0x4000_0000, 0x7fff_ffff, 0xffff_ffff] as [UInt32] {
        let connection = try context.connection()
        let id = try connection.post(Command.getInfo.rawValue, [], size: size)
        if let id, case .answered = try connection.reaction(to: id, Command.getInfo.rawValue) {
          throw .broken("a message of \(size) bytes was answered as done")
        }
        connection.close()
      }
      return "1, 2 and 4 GiB"
    },
    Check("cut", "header", "A client that goes in the middle of a message does no harm.") { context throws(Finding) in
      for count in [1, 15, 16, 20] {
        let connection = try context.connection()
        let bytes = Header(id: 3, command: Command.mapDMA.rawValue, size: 48, flags: 0).encoded + Wire.map(0, 4096)
        try connection.send(
          Array(bytes.prefix(count)), descriptors: [connection.memory.descriptor])
        connection.close()
        let next = try context.connection()
        try expect(try next.isAnswering(), "after \(count) bytes of a message the next client is not answered")
        next.close()
      }
      return "after 1, 15, 16 and 20 bytes"
    },
    Check("descriptors-many", "header", "A message with more descriptors than any command takes does no harm.") {
      context throws(Finding) in
      let connection = try context.connection()
      let file = connection.memory.descriptor
      let reaction = try connection.provoke(
        .getInfo, Wire.words(16, 0, 0, 0), descriptors: [Int32](repeating: file, count: 64))
      return try connection.survived(reaction)
    },
    Check("feature", "DEVICE_FEATURE", "A feature of a device that it does not have is refused.") {
      context throws(Finding) in
      let connection = try context.connection()
      // No feature has this number; migration may be there.
      for flags in [0x1_ffff, 0x2_ffff, 0x4_ffff] as [UInt32] {
        let reaction = try connection.provoke(.feature, Wire.words(16, flags, 0, 0))
        _ = try connection.refused(reaction, "feature 65535 with flags \(hex(flags >> 16))")
        if reaction == .closed { return "it closed the connection" }
      }
      return "to get, to set and to probe one"
    },
    Check("migration", "MIG_DATA_READ", "Data of a migration that nobody began is refused.") {
      context throws(Finding) in
      let connection = try context.connection()
      for command in [Command.readMigrationData, .writeMigrationData] {
        let reaction = try connection.provoke(command, Wire.words(12, 4) + [1, 2, 3, 4])
        _ = try connection.refused(reaction, command.name)
        if reaction == .closed { return "it closed the connection" }
      }
      return "to read and to write"
    },
    Check("region-fds", "GET_REGION_IO_FDS", "Descriptors of a region that does not exist are refused.") {
      context throws(Finding) in
      let connection = try context.connection()
      return try connection.refused(
        try connection.provoke(.getRegionDescriptors, Wire.words(16, 0, 0x7fff, 0)),
        "DEVICE_GET_REGION_IO_FDS of region 32767")
    },
  ]
}
