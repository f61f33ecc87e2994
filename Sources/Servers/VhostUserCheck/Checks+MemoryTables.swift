internal import DMA
internal import Examination
internal import HostIO
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio

extension Check {
  /// Memory tables that make no sense.
  static let memoryTables: [Check] = [
    Check(
      "regions-overlap", "ADD_MEM_REG", "A region that overlaps another is refused.",
      protocolFeatures: [.configureMemorySlots, .replyAck]
    ) { context throws(Finding) in
      let session = try Session(context)
      var region = session.space.region
      region.guestAddress += 4096
      region.frontendAddress += 4096
      region.size = 65536
      let file = try memoryFile(1 << 20)
      let message = FrontendRequest.addMemoryRegion(region)
      let said = try refusal { () throws(FrontendError) in
        try session.frontend.send(message, descriptors: [file.descriptor.rawValue])
      }
      guard let said else { throw .broken(Check.tookIt) }
      return said
    },
    Check(
      "slots-full", "ADD_MEM_REG", "A region more than there are slots is refused.",
      protocolFeatures: [.configureMemorySlots, .replyAck]
    ) { context throws(Finding) in
      let frontend = try context.connect()
      let file = try memoryFile(4096)
      let slots = try judged { () throws(FrontendError) in
        try frontend.negotiate([.version1])
        return try frontend.maxMemorySlots()
      }
      guard slots <= 4096 else { throw .notOffered("\(slots) slots are too many to fill") }
      for i in 0..<slots + 1 {
        let region = RegionDescription(
          guestAddress: 0x1_0000_0000 + i * 0x10000, size: 4096, frontendAddress: 0x7500_0000_0000 + i * 0x10000,
          offset: 0)
        let said = try refusal { () throws(FrontendError) in
          try frontend.send(.addMemoryRegion(region), descriptors: [file.descriptor.rawValue])
        }
        if i < slots {
          try expect(said == nil, "region \(i + 1) of \(slots) was refused")
        } else if let said {
          return "after \(slots) regions \(said)"
        }
      }
      throw .broken("region \(slots + 1) was acknowledged, and there are \(slots) slots")
    },
    Check(
      "table-too-long", "SET_MEM_TABLE", "A table that says it has four thousand million regions is refused."
    ) { context throws(Finding) in
      let connection = try context.negotiatedRaw()
      let file = try memoryFile(4096)
      let payload = RawDescriptor.bytes(0xffff_ffff, 8) + [UInt8](repeating: 0, count: 32)
      let reaction = try connection.provoke(
        FrontendRequest.Kind.setMemoryTable.rawValue, payload, descriptors: [file.descriptor.rawValue])
      return try connection.mustRefuse(reaction, "the message")
    },
    Check("region-without-file", "SET_MEM_TABLE", "A region without its file is refused.") { context throws(Finding) in
      let connection = try context.negotiatedRaw()
      let table = FrontendRequest.setMemoryTable([
        RegionDescription(guestAddress: 0, size: 4096, frontendAddress: 0x7500_0000_0000, offset: 0)
      ])
      return try connection.mustRefuse(try connection.provoke(table.kind.rawValue, table.payload), "the message")
    },
    Check(
      "region-wraps", "SET_MEM_TABLE", "A region that passes the end of the address space is refused."
    ) { context throws(Finding) in
      let connection = try context.negotiatedRaw()
      let file = try memoryFile(8192)
      let table = FrontendRequest.setMemoryTable([
        RegionDescription(guestAddress: .max - 4095, size: 8192, frontendAddress: 0x7500_0000_0000, offset: 0)
      ])
      return try connection.mustRefuse(
        try connection.provoke(table.kind.rawValue, table.payload, descriptors: [file.descriptor.rawValue]),
        "the message")
    },
    Check(
      "short-file", "memory", "A file that is shorter than its region is refused, or what it lacks does no harm."
    ) { context throws(Finding) in
      let session = try Session(context)
      if let said = try announceCut(session) { return said }
      try session.start()
      return try useCut(session)
    },
    Check("file-cut", "memory", "A file that is cut short under the back-end does no harm.") {
      context throws(Finding) in
      let session = try Session(context)
      if let said = try announceCut(session, cut: false) { return "not seen: \(said)" }
      try session.start()
      try session.roundTrip()
      let region = session.space.memory.regions[1]
      try judged { () throws(FrontendError) in try session.space.memory.truncate(region, to: 4096) }
      return try useCut(session)
    },
  ]

  private static let cutStart: UInt64 = 0x1_4000_0000

  /// Makes a second region and sends it; cut: its file has the first page only. Returns how it was refused, or nil.
  private static func announceCut(_ session: Session, cut: Bool = true) throws(Finding) -> String? {
    let (frontend, memory) = (session.frontend, session.space.memory)
    let region = try judged { () throws(FrontendError) in
      let region = try memory.add(byteCount: 1 << 20, at: GuestAddress(cutStart), sealed: false)
      if cut { try memory.truncate(region, to: 4096) }
      return region
    }
    return try refusal { () throws(FrontendError) in
      if frontend.protocolFeatures.contains(.configureMemorySlots) {
        try frontend.add(region)
      } else {
        try frontend.share()
      }
    }
  }

  /// A request with a buffer in what is gone.
  private static func useCut(_ session: Session) throws(Finding) -> String {
    session.put(at: DMAAddress(cutStart + 0x8000))
    try session.submit()
    _ = try unharmed(session)
    try recover(session)
    return "the back-end lives, and the ring worked after it was set up again"
  }
}
