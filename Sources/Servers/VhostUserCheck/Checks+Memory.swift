internal import DMA
internal import Examination
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio
internal import VirtioDrivers

extension Check {
  /// Memory that comes, goes and moves.
  static let memory: [Check] = [
    Check("file-offset", "memory", "A region that starts inside its file is read where it starts.") {
      context throws(Finding) in
      let session = try context.session(Setup(fileOffset: 0x3000))
      try session.roundTrip()
      return "a region 12288 bytes into its file works"
    },
    Check("second-region", "memory", "Buffers in a second region are reached.") { context throws(Finding) in
      let session = try Session(context)
      let place = try second(session)
      try again(session)
      try session.start()
      session.put(at: place)
      try session.roundTrip()
      return "a request with buffers above 4 GiB was served"
    },
    Check("memory-replaced", "SET_MEM_TABLE", "When memory was replaced, the new one is used.") {
      context throws(Finding) in
      let session = try context.session()
      return try servesAfterReplacement(session)
    },
    Check(
      "add-while-running", "ADD_MEM_REG", "A region can be added while a ring runs (R069).",
      protocolFeatures: .configureMemorySlots
    ) { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      let place = try second(session)
      let region = session.space.memory.regions[1]
      try judged { () throws(FrontendError) in try session.frontend.add(region) }
      let before = session.pieces
      session.put(at: place)
      try session.roundTrip()
      session.pieces = before
      try judged { () throws(FrontendError) in try session.frontend.remove(region) }
      try session.roundTrip()
      return "used while the ring ran, and taken away again"
    },
    Check(
      "removed-region", "REM_MEM_REG", "A buffer in a region that was taken away is not reached.",
      protocolFeatures: .configureMemorySlots
    ) { context throws(Finding) in
      let session = try context.session()
      let place = try second(session)
      let region = session.space.memory.regions[1]
      try judged { () throws(FrontendError) in
        try session.frontend.add(region)
        try session.frontend.remove(region)
      }
      session.put(at: place)
      try session.submit()
      let used: UsedBuffer?
      do throws(Finding) { used = try unharmed(session) } catch {
        // The front-end takes memory that its driver still uses: it may be given up for that.
        guard case .closed? = session.frontend.failure else { throw error }
        return "it closed the connection"
      }
      if let used { try expect(session.fault(used) != nil || !context.device.writes, "the request was served") }
      try recover(session)
      return used == nil ? "the request came to nothing" : "the request was used, and not served"
    },
    Check(
      "unknown-region", "REM_MEM_REG", "Taking an unknown region away is refused.",
      protocolFeatures: [.configureMemorySlots, .replyAck]
    ) { context throws(Finding) in
      let session = try context.session()
      let none = RegionDescription(
        guestAddress: 0x7_0000_0000, size: 4096, frontendAddress: 0x7700_0000_0000, offset: 0)
      let said = try refusal { () throws(FrontendError) in try session.frontend.send(.removeMemoryRegion(none)) }
      guard let said else { throw .broken(Check.tookIt) }
      return said
    },
  ]

  /// Makes a second region of one megabyte above 4 GiB here. Returns where it starts.
  private static func second(_ session: Session) throws(Finding) -> DMAAddress {
    try judged { () throws(FrontendError) in
      _ = try session.space.memory.add(byteCount: 1 << 20, at: GuestAddress(0x1_4000_0000))
    }
    return DMAAddress(0x1_4000_0000)
  }

  /// Sends the back-end all memory once more, as one table or by the new regions.
  private static func again(_ session: Session) throws(Finding) {
    let frontend = session.frontend
    try judged { () throws(FrontendError) in
      if frontend.protocolFeatures.contains(.configureMemorySlots) {
        try frontend.add(session.space.memory.regions[1])
      } else {
        try frontend.share()
      }
    }
  }

  static func servesAfterReplacement(_ session: Session) throws(Finding) -> String {
    try session.roundTrip()
    _ = try session.stop()
    try replace(session)
    try session.start()
    try session.roundTrip()
    return "a request was served in other memory at the same addresses"
  }

  /// Puts other memory where the old was, at both ends.
  private static func replace(_ session: Session) throws(Finding) {
    let frontend = session.frontend
    let old = session.space.region
    let slots = frontend.protocolFeatures.contains(.configureMemorySlots)
    if slots { try judged { () throws(FrontendError) in try frontend.remove(old) } }
    try session.space.replaceMemory()
    try judged { () throws(FrontendError) in try frontend.share() }
  }

  /// What became of a request that cannot be served: it may be used or stay where it is; the back-end has to live.
  static func unharmed(_ session: Session) throws(Finding) -> UsedBuffer? {
    let used = try session.used(within: session.context.quiet)
    try session.expectAnswer()
    return used
  }

  /// Where there is a status: resets the device, and is ready for its rings again. A reset ends what was negotiated, so
  /// that the features come again, as QEMU sends them; these where they are to be others.
  static func restartStatus(_ frontend: Frontend, _ features: Features? = nil) throws(FrontendError) {
    let hasStatus = frontend.protocolFeatures.contains(.status)
    if hasStatus { try frontend.setStatus([]) }
    if hasStatus || features != nil { _ = try frontend.setFeatures(features ?? frontend.features) }
    if hasStatus { try frontend.setStatus([.acknowledge, .driver, .featuresOK]) }
  }

  /// The ring works after it was set up again with buffers that are there.
  static func recover(_ session: Session) throws(Finding) {
    _ = try session.stop()
    for i in session.pieces.indices { session.pieces[i] = try session.space.allocate() }
    try judged { () throws(FrontendError) in try restartStatus(session.frontend) }
    try session.start()
    do throws(Finding) { try session.roundTrip() } catch {
      throw Finding(verdict: error.verdict, evidence: "after the ring was set up again: \(error.evidence)")
    }
  }
}
