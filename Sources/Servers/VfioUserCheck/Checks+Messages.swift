internal import Examination
internal import HostIO

extension Check {
  /// Memory without a descriptor: the server has to ask for every byte.
  static let messages: [Check] = [
    Check("message-map", "DMA_MAP", "Memory without a descriptor can be mapped, and taken back.") {
      context throws(Finding) in
      let session = try context.session()
      let reaction = try session.tryMap(ClientMemory.base, 0x4000, .nothing)
      guard case .answered = reaction else {
        throw .notOffered("a mapping without a descriptor is refused: \(try session.connection.survived(reaction))")
      }
      let over = try session.connection.provoke(.mapDMA, Wire.map(ClientMemory.base + 0x1000, 0x1000))
      try expect(over == .refused(.fileExists), "a mapping over it is not refused with EEXIST")
      try session.unmap(ClientMemory.base, 0x4000)
      try session.map(ClientMemory.base, 0x4000)
      return "taken back, and mapped again with a descriptor"
    },
    Check(
      "message-dma", "DMA_READ", "A device works in memory without a descriptor, by DMA_READ and DMA_WRITE.",
      needs: .driver
    ) {
      context throws(Finding) in
      let driven = try byMessage(context)
      try driven.map(Driven.data, driven.probe.most)
      for _ in 0..<3 { try driven.roundTrip() }
      try driven.roundTrip(count: driven.probe.most)
      try inside(driven)
      return "three requests of a page and one of \(driven.probe.most) bytes, with \(driven.memory.served) messages"
    },
    Check("message-outside", "DMA_WRITE", "What is not mapped is not even asked for.", needs: .driver) {
      context throws(Finding) in
      let driven = try byMessage(context)
      try driven.map(flags: MapFlags.read)
      driven.memory.poison(at: Driven.dataOffset, 0x4000)
      for address in [Driven.data, Driven.data + 4096, ClientMemory.base + Driven.dataOffset] {
        try driven.probe.submit(at: address, count: 4096)
        _ = try driven.unserved()
      }
      try untouched(driven, Driven.dataOffset, 0x4000, "that is not mapped for writing")
      try inside(driven)
      return "three requests, and nothing was asked for"
    },
    Check(
      "message-refused", "DMA_WRITE", "A DMA_WRITE that the client refuses fails the request, and no more.",
      needs: .driver
    ) {
      context throws(Finding) in
      let driven = try byMessage(context)
      try driven.map()
      try driven.roundTrip()
      // As a client whose guest has just taken its mapping away.
      driven.memory.close(Driven.data, 4096)
      driven.memory.poison(at: Driven.dataOffset, 4096)
      try driven.probe.submit(at: Driven.data, count: 4096)
      let said = try driven.unserved()
      try untouched(driven, Driven.dataOffset, 4096, "that the client refused")
      // That one page it could not know of.
      let strange = driven.memory.outside.first { $0.address < Driven.data || $0.address >= Driven.data + 4096 }
      if let strange { throw .broken("it asked for what was never mapped: a \(strange)") }
      try expect(try driven.session.connection.isAnswering(), "it closed the connection")
      try driven.recovers()
      return said
    },
    Check(
      "message-taken-back", "DMA_UNMAP", "What was taken back is not asked for, requests under way included.",
      needs: .driver
    ) {
      context throws(Finding) in
      var driven = try byMessage(context)
      for _ in 0..<16 {
        try driven.map()
        for _ in 0..<8 { try driven.probe.submit(at: Driven.data, count: 4096) }
        try driven.session.unmap(Driven.data, 4096)
        let ended = try driven.cutOff(8)
        try inside(driven)
        if ended == nil {
          context.closeAll()
          driven = try byMessage(context)
        }
      }
      return "16 times under 8 requests"
    },
  ]

  /// A driven device all of whose memory has no descriptor; a finding where the server does not offer that.
  private static func byMessage(_ context: CheckContext) throws(Finding) -> Driven {
    let session = try context.session()
    let reaction = try session.tryMap(ClientMemory.base, ClientMemory.ringBytes, .nothing)
    guard case .answered = reaction else {
      throw .notOffered("a mapping without a descriptor is refused: \(try session.connection.survived(reaction))")
    }
    try session.unmap(ClientMemory.base, ClientMemory.ringBytes)
    do throws(Finding) {
      let driven = try context.driven(on: session, Setup(byMessage: true))
      // A device may have to ask for nothing until the first request.
      try driven.map()
      try driven.probe.submit(at: Driven.data, count: ClientMemory.page)
      _ = try driven.probe.finish(within: min(context.patience, .seconds(1)))
      if session.memory.served > 0 {
        try driven.session.unmap(Driven.data, ClientMemory.page)
        return driven
      }
    } catch {
      guard session.memory.served == 0 else { throw error }
    }
    throw .notOffered("such memory is taken, and the server never asked for any of it")
  }

  private static func inside(_ driven: Driven) throws(Finding) {
    if let first = driven.memory.outside.first { throw .broken("it asked for what is not mapped: a \(first)") }
  }
}
