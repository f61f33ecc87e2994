internal import DMA
internal import Examination
internal import HostIO

extension Check {
  /// Mappings under a device that uses them.
  static let traffic: [Check] = [
    Check("dma", "DMA_MAP", "A device reaches what is mapped for it.", needs: .driver) { context throws(Finding) in
      let driven = try context.driven()
      try driven.map(Driven.data, driven.probe.most)
      for _ in 0..<3 { try driven.roundTrip() }
      try driven.roundTrip(count: driven.probe.most)
      return "\(driven.probe.name): three requests of a page and one of \(driven.probe.most) bytes"
    },
    Check("dma-offset", "DMA_MAP", "Memory is reached where its offset says.", needs: .driver) {
      context throws(Finding) in
      let driven = try context.driven()
      let offset = Driven.dataOffset + 0x23000
      try driven.map(offset: offset)
      driven.memory.poison(at: Driven.dataOffset, 0x23000)
      try driven.roundTrip(landing: offset)
      try untouched(driven, Driven.dataOffset, 0x23000, "in front of the mapping's offset")
      return "\(hex(offset)) bytes into the file"
    },
    Check("dma-scattered", "DMA_MAP", "Mappings that adjoin may be apart in the file.", needs: .driver) {
      context throws(Finding) in
      let driven = try context.driven()
      guard driven.probe.most >= 8192 else { throw .notChecked("its requests are too short") }
      let (first, second) = (Driven.dataOffset + 0x8000, Driven.dataOffset)
      try driven.map(Driven.data, offset: first)
      try driven.map(Driven.data + 4096, offset: second)
      driven.memory.poison(at: second, 0x10000)
      try driven.probe.submit(at: Driven.data, count: 8192)
      try driven.served(landing: first)
      try expect(driven.memory.spoiled(at: second, 4096) != nil, "the second page was not written where it leads")
      try untouched(driven, second + 4096, 0x7000, "between both")
      try untouched(driven, first + 4096, 0x7000, "behind the first")
      return "a request over two mappings"
    },
    Check("dma-two-files", "DMA_MAP", "Mappings may be of several files.", needs: .driver) { context throws(Finding) in
      let driven = try context.driven()
      let other = try ClientMemory()
      other.poison(at: 0x5000, 4096)
      driven.memory.poison(at: 0x5000 + Driven.dataOffset, 4096)
      try driven.session.map(Driven.data, 4096, offset: 0x5000, .other(other.file.descriptor.rawValue))
      try driven.probe.submit(at: Driven.data, count: 4096)
      guard try driven.probe.finish(within: context.patience) == .done else {
        throw .broken("a request was not served")
      }
      try expect(other.spoiled(at: 0x5000, 4096) != nil, "the other file was not written")
      return "rings in one, and data in another"
    },
    Check("dma-unmapped", "DMA_MAP", "What is not mapped is not reached.", needs: .driver) { context throws(Finding) in
      let driven = try context.driven()
      driven.memory.poison(at: Driven.dataOffset, 1 << 20)
      try driven.probe.submit(at: Driven.data, count: 4096)
      let said = try driven.unserved()
      // Nor is a guest address, or an offset, taken for it.
      for address in [ClientMemory.base + Driven.dataOffset, Driven.dataOffset] {
        try driven.probe.submit(at: address, count: 4096)
        _ = try driven.unserved()
      }
      try untouched(driven, Driven.dataOffset, 1 << 20, "that was not mapped")
      try driven.recovers()
      return said
    },
    Check("dma-hole", "DMA_MAP", "A request over a hole between mappings is not reported as done.", needs: .driver) {
      context throws(Finding) in
      let driven = try context.driven()
      guard driven.probe.most >= 0x3000 else { throw .notChecked("its requests are too short") }
      try driven.map(Driven.data)
      try driven.map(Driven.data + 0x2000, offset: Driven.dataOffset + 0x2000)
      driven.memory.poison(at: Driven.dataOffset, 0x4000)
      try driven.probe.submit(at: Driven.data, count: 0x3000)
      let said = try driven.unserved()
      try untouched(driven, Driven.dataOffset + 0x1000, 0x1000, "in the hole")
      try untouched(driven, Driven.dataOffset + 0x3000, 0x1000, "behind the last mapping")
      try driven.recovers()
      return said
    },
    Check("dma-read-only", "DMA_MAP", "What is mapped for reading alone is not written.", needs: .driver) {
      context throws(Finding) in
      let driven = try context.driven()
      try driven.map(flags: MapFlags.read)
      driven.memory.poison(at: Driven.dataOffset, 4096)
      try driven.probe.submit(at: Driven.data, count: 4096)
      let outcome = try driven.probe.finish(within: context.quiet)
      try untouched(driven, Driven.dataOffset, 4096, "that is mapped for reading alone")
      if outcome == .done { throw .broken("the request was reported as done, and nothing was written") }
      try driven.recovers()
      return outcome == nil ? "nothing came of the request" : "the request failed"
    },
    Check("dma-write-only", "DMA_MAP", "What is mapped for writing alone is not read.", needs: .driver) {
      context throws(Finding) in
      var isServed = false
      do throws(Finding) {
        let driven = try context.driven(Setup(ringFlags: MapFlags.write, start: .milliseconds(300)))
        try driven.map()
        try driven.probe.submit(at: Driven.data, count: 4096)
        isServed = try driven.probe.finish(within: context.quiet) == .done
      } catch {
        // It does not even start.
      }
      try expect(!isServed, "requests were read from memory that is mapped for writing alone")
      context.closeAll()
      let next = try context.driven()
      try next.map()
      try next.roundTrip()
      return "no request was served from such rings"
    },
    Check("dma-remapped", "DMA_UNMAP", "When a mapping was replaced the new one is used.", needs: .driver) {
      context throws(Finding) in
      let driven = try context.driven()
      let other = Driven.dataOffset + 0x10000
      for round in 0..<8 {
        try driven.map(offset: Driven.dataOffset)
        try driven.roundTrip()
        try driven.session.unmap(Driven.data, 4096)
        driven.memory.poison(at: Driven.dataOffset, 4096)
        try driven.map(offset: other)
        try driven.roundTrip(landing: other)
        try untouched(driven, Driven.dataOffset, 4096, "where the address led before, in round \(round)")
        try driven.session.unmap(Driven.data, 4096)
      }
      return "eight times"
    },
    Check("dma-taken-back", "DMA_UNMAP", "What was taken back is not reached.", needs: .driver) {
      context throws(Finding) in
      let driven = try context.driven()
      try driven.map()
      try driven.roundTrip()
      try driven.session.unmap(Driven.data, 4096)
      driven.memory.poison(at: Driven.dataOffset, 4096)
      try driven.probe.submit(at: Driven.data, count: 4096)
      let said = try driven.unserved()
      try untouched(driven, Driven.dataOffset, 4096, "that was taken back")
      try driven.recovers()
      return said
    },
    Check(
      "dma-unmap-under-way", "DMA_UNMAP",
      "The reply comes when nothing uses the memory any more, requests under way included.", needs: .driver
    ) {
      context throws(Finding) in
      var driven = try context.driven()
      let size = driven.probe.most
      var cut = 0
      for round in 0..<48 {
        try driven.map(Driven.data, size)
        for _ in 0..<16 { try driven.probe.submit(at: Driven.data, count: size) }
        // From amid the requests to their end.
        if round % 4 == 3 { pause(.microseconds(200 * (round / 4))) }
        try driven.session.unmap(Driven.data, size)
        driven.memory.poison(at: Driven.dataOffset, size)
        let ended = try driven.cutOff(16)
        try untouched(driven, Driven.dataOffset, size, "whose end was acknowledged, in round \(round)")
        cut += ended ?? 1
        if ended == nil {
          context.closeAll()
          driven = try context.driven()
        }
      }
      try driven.recovers()
      return "48 times 16 requests, \(cut) of them cut off"
    },
    Check("dma-rings-taken-back", "DMA_UNMAP", "Rings whose memory goes under requests do no harm.", needs: .driver) {
      context throws(Finding) in
      let driven = try context.driven()
      try driven.map(Driven.data, driven.probe.most)
      for _ in 0..<16 { try driven.probe.submit(at: Driven.data, count: driven.probe.most) }
      try driven.session.unmap(ClientMemory.base, ClientMemory.ringBytes)
      let rings = driven.memory.bytes(at: 0, Int(ClientMemory.ringBytes))
      pause(context.quiet)
      try expect(
        driven.memory.bytes(at: 0, Int(ClientMemory.ringBytes)) == rings,
        "the rings were written after their end was acknowledged")
      try expect(try driven.session.connection.isAnswering(), "it closed the connection")
      try driven.recovers()
      return "nothing was written, and the device works when it is started again"
    },
    Check("dma-reset", "RESET", "After RESET nothing is written any more, requests under way included.", needs: .driver)
    {
      context throws(Finding) in
      for round in 0..<16 {
        let driven = try context.driven()
        try driven.map(Driven.data, driven.probe.most)
        for _ in 0..<16 { try driven.probe.submit(at: Driven.data, count: driven.probe.most) }
        try driven.session.connection.ask(.reset)
        driven.memory.poison(at: 0, ClientMemory.byteCount)
        pause(.milliseconds(2))
        try untouched(driven, 0, ClientMemory.byteCount, "after RESET, in round \(round)")
        context.closeAll()
      }
      let next = try context.driven()
      try next.map()
      try next.roundTrip()
      return "16 times under 16 requests, and the device works when it is started again"
    },
    Check(
      "dma-gone", "connection", "When the next client is served nothing of the last one's memory is used any more.",
      needs: .driver
    ) {
      context throws(Finding) in
      for round in 0..<16 {
        let driven = try context.driven()
        try driven.map(Driven.data, driven.probe.most)
        for _ in 0..<16 { try driven.probe.submit(at: Driven.data, count: driven.probe.most) }
        driven.session.connection.close()
        _ = try context.connection()
        driven.memory.poison(at: 0, ClientMemory.byteCount)
        pause(.milliseconds(2))
        try untouched(driven, 0, ClientMemory.byteCount, "after the next client was served, in round \(round)")
        context.closeAll()
      }
      let next = try context.driven()
      try next.map()
      try next.roundTrip()
      return "16 times under 16 requests, and the device works for the next client"
    },
    Check("dma-cut-file", "DMA_MAP", "A file that is cut short under a device does no harm.", needs: .driver) {
      context throws(Finding) in
      let driven = try context.driven()
      let small = try rethrowing(MemoryFile(name: "small", size: 1 << 16), saying: Finding.notChecked)
      try driven.session.map(Driven.data, 1 << 16, .other(small.descriptor.rawValue))
      try rethrowing(small.resize(to: 4096), saying: Finding.notChecked)
      for _ in 0..<4 { try driven.probe.submit(at: Driven.data + 0x8000, count: 4096) }
      for _ in 0..<4 { _ = try driven.probe.finish(within: context.quiet) }
      try expect(try driven.session.connection.isAnswering(), "it closed the connection")
      try driven.recovers()
      return "it lives, and the device works when it is started again"
    },
    Check(
      "dma-beyond-file", "DMA_MAP", "A mapping that its file does not have does no harm when it is used.",
      needs: .driver
    ) {
      context throws(Finding) in
      let driven = try context.driven()
      let small = try rethrowing(MemoryFile(name: "small", size: 4096), saying: Finding.notChecked)
      let reaction = try driven.session.tryMap(Driven.data, 1 << 16, .other(small.descriptor.rawValue))
      guard case .answered = reaction else { return try driven.session.connection.survived(reaction) }
      try driven.probe.submit(at: Driven.data + 0x8000, count: 4096)
      _ = try driven.probe.finish(within: context.quiet)
      try driven.recovers()
      return "it was taken, and the server survives a request that uses it"
    },
    Check("dma-map-storm", "DMA_MAP", "Mappings that come and go beside it do not disturb a device.", needs: .driver) {
      context throws(Finding) in
      let driven = try context.driven()
      try driven.map(Driven.data, driven.probe.most)
      for round in 0..<64 as Range<UInt64> {
        for _ in 0..<4 { try driven.probe.submit(at: Driven.data, count: driven.probe.most) }
        for n in 0..<16 as Range<UInt64> { try driven.map(1 << 40 | n << 12, offset: (round + n) % 64 * 4096) }
        for n in 0..<16 as Range<UInt64> { try driven.session.unmap(1 << 40 | n << 12, 4096) }
        for _ in 0..<4 {
          switch try driven.probe.finish(within: context.patience) {
          case .done: break
          case .failed(let why): throw .broken("a request failed in round \(round): \(why)")
          case nil: throw .wedged("a request did not come back in round \(round)")
          }
        }
      }
      return "2048 maps and unmaps beside 256 requests"
    },
  ]

  /// Nothing was written to a part of the memory that was poisoned.
  static func untouched(_ driven: Driven, _ offset: UInt64, _ count: UInt64, _ which: String) throws(Finding) {
    guard let place = driven.memory.spoiled(at: offset, count) else { return }
    throw .broken("memory \(which) was written, at byte \(hex(place)) of the file")
  }
}
