internal import Examination

extension Check {
  /// Random numbers, the same every time.
  static let garbage: [Check] = [
    Check("garbage-payloads", "messages", "Commands with random payloads do no harm.") { context throws(Finding) in
      var random = Numbers(seed: 1)
      var sent = 0
      for _ in 0..<24 {
        let connection = try context.connection()
        for _ in 0..<32 {
          // Most fields are small where they mean something.
          let command = UInt16(random.next() % 20)
          let count = Int(random.next() % 64)
          let payload = (0..<count).map { _ in random.next() & 3 == 0 ? UInt8(truncatingIfNeeded: random.next()) : 0 }
          let descriptors =
            random.next() & 3 == 0 ? [connection.memory.descriptor] : []
          guard try connection.provoke(command, payload, descriptors: descriptors) != .closed else { break }
          sent += 1
        }
        connection.close()
      }
      return "\(sent) were answered"
    },
    Check("garbage-headers", "messages", "Random bytes in place of messages do no harm.") { context throws(Finding) in
      var random = Numbers(seed: 2)
      for round in 0..<24 {
        let connection = round % 2 == 0 ? try context.connection() : try context.raw()
        let bytes = (0..<Int(random.next() % 512) + 1).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        try connection.send(bytes)
        connection.close()
      }
      return "24 connections"
    },
    Check("garbage-registers", "REGION_WRITE", "Random writes to every region do no harm, and RESET cures them.") {
      context throws(Finding) in
      guard context.deviceFlags & 1 != 0 else { throw .notOffered("the device says that it cannot be reset") }
      var random = Numbers(seed: 3)
      let session = try context.session()
      try session.map(ClientMemory.base, ClientMemory.byteCount)
      let there = context.regions.filter { $0.size >= 8 }
      for region in there {
        for _ in 0..<256 {
          let width: UInt64 = 1 << (random.next() & 3)
          let offset = random.next() % min(region.size, 1 << 20) & ~(width - 1)
          guard offset + width <= region.size else { continue }
          let bytes = (0..<width).map { _ in UInt8(truncatingIfNeeded: random.next()) }
          let access = Wire.access(region.index, offset, UInt32(width))
          guard try session.connection.provoke(.writeRegion, access + bytes) != .closed else {
            throw .broken(
              "it closed the connection at a write of \(width) bytes at \(hex(offset)) of region \(region.index)")
          }
        }
      }
      try session.connection.ask(.reset)
      try expect(
        try session.configuration(0, 2) == UInt32(context.identity.vendor), "the configuration space is not what it was"
      )
      if Driven.knows(context.identity) {
        context.closeAll()
        let driven = try context.driven()
        try driven.map()
        try driven.roundTrip()
      }
      return "256 writes to each of \(there.count) regions"
    },
  ]
}

/// Random numbers that are the same every time (SplitMix64).
private struct Numbers {
  private var state: UInt64
  init(seed: UInt64) { state = seed }
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ z >> 30) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ z >> 27) &* 0x94d0_49bb_1331_11eb
    return z ^ z >> 31
  }
}
