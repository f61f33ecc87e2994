internal import DMA
internal import Examination
internal import HostIO
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio
internal import VirtioDrivers

extension Check {
  /// The dirty log.
  static let log: [Check] = [
    Check(
      "log", "R132", "Pages that were written are marked in the log, and others are not.",
      features: Frontend.logAllBit, protocolFeatures: .logSharedMemory
    ) { context throws(Finding) in try logged(context, Setup()) },
    Check(
      "log-translated", "R134",
      "Behind an IOMMU the log is marked by guest address and not by device address (R136).",
      features: [Frontend.logAllBit, .accessPlatform], protocolFeatures: .logSharedMemory
    ) { context throws(Finding) in try logged(context, .platform) },
    Check(
      "log-scattered", "R135", "A used ring over several pages is marked page by page.",
      features: [Frontend.logAllBit, .accessPlatform], protocolFeatures: .logSharedMemory
    ) { context throws(Finding) in try logged(context, Setup(translated: true, scattered: true)) },
    Check(
      "log-switched", "SET_FEATURES", "Logging can be switched on and off while a ring runs.",
      features: Frontend.logAllBit, protocolFeatures: .logSharedMemory
    ) { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      let log = try judged { () throws(FrontendError) in try session.frontend.startLogging() }
      try session.roundTrip()
      if context.device.writes {
        let page = session.space.guest(session.landing).rawValue / DeviceSpace.page
        try expect(marked(log, [page]), "the page of the answer was not marked after logging was switched on")
      }
      try judged { () throws(FrontendError) in try session.frontend.stopLogging() }
      // A back-end that goes on marking marks too much, which is harmless.
      try session.roundTrip()
      return "requests were served before, with and after logging"
    },
    Check(
      "log-regions", "R132", "A write across two regions that adjoin marks the pages of both.",
      features: Frontend.logAllBit, protocolFeatures: .logSharedMemory, needsWrites: true
    ) { context throws(Finding) in try loggedAcross(context, Setup(below: 6)) },
    Check(
      "log-regions-translated", "R132", "The same behind an IOMMU.",
      features: [Frontend.logAllBit, .accessPlatform], protocolFeatures: .logSharedMemory, needsWrites: true
    ) { context throws(Finding) in try loggedAcross(context, Setup(translated: true, below: 6)) },
    Check(
      "log-table", "R132", "Requests that are under way while the memory table is set are logged when they are done.",
      features: Frontend.logAllBit, protocolFeatures: .logSharedMemory, needsWrites: true
    ) { context throws(Finding) in
      let slotless = Frontend.usualProtocolFeatures.subtracting(.configureMemorySlots)
      let session = try Session(context, Setup(protocolFeatures: slotless, size: context.device.longRing))
      let frontend = session.frontend
      let log = try judged { () throws(FrontendError) in try frontend.startLogging() }
      try session.start()
      try session.roundTrip()
      let usual = session.landing
      // A page each: a mark for one is no mark for the next.
      var places: [DMAAddress] = []
      for _ in 0..<min(256, session.room) { places.append(try session.space.allocate()) }
      let pages = places.map { session.space.guest($0).rawValue / DeviceSpace.page }
      for turn in 1...16 {
        log.clear()
        for place in places {
          session.landing = place
          try session.add()
        }
        session.publish()
        // The same memory once more, as a front-end sends it that knows no slots.
        try judged { () throws(FrontendError) in try frontend.share() }
        for done in 0..<places.count {
          guard try session.used() != nil else {
            throw .broken("\(places.count - done) of \(places.count) requests were lost")
          }
        }
        let isMarked = marked(log, pages)
        let missing = Set(pages).subtracting(log.pages).count
        try expect(
          isMarked,
          "turn \(turn): \(pages.count) pages were written while the table was set, and \(missing) are not marked")
        session.landing = usual
        try session.roundTrip()
      }
      return "16 times \(places.count) requests under way, all of them marked"
    },
  ]

  private static func loggedAcross(_ context: CheckContext, _ setup: Setup) throws(Finding) -> String {
    let session = try Session(context, setup)
    let log = try judged { () throws(FrontendError) in try session.frontend.startLogging() }
    try session.start()
    // What it has to bring is known from one whose buffer is in one piece.
    try session.roundTrip()
    let half = session.landingCount / 2
    for i in 0..<UInt64(setup.below) {
      let border = DeviceSpace.guestStart - i << 20
      var middle = border
      if setup.translated {
        middle = 0x3_0000_1000 + i << 16
        try session.space.map(DMAAddress(middle - DeviceSpace.page), to: GuestAddress(border - DeviceSpace.page))
        try session.space.map(DMAAddress(middle), to: GuestAddress(border))
      }
      session.landing = DMAAddress(middle - UInt64(half))
      let pages = [border / DeviceSpace.page - 1, border / DeviceSpace.page]
      log.clear()
      try session.roundTrip()
      // Of random bytes there may be fewer than there is room for.
      let isAcross = !session.space.isBlank(GuestAddress(border), count: session.landingCount - half)
      try expect(
        marked(log, isAcross ? pages : [pages[0]]),
        "pages \(pages) were written, of two regions, and \(log.pages) are marked")
    }
    return "\(setup.below) times the pages of both are marked"
  }

  private static func logged(_ context: CheckContext, _ setup: Setup) throws(Finding) -> String {
    let session = try Session(context, setup)
    let log = try judged { () throws(FrontendError) in try session.frontend.startLogging() }
    try session.start()
    _ = try laps(session)
    func page(_ address: DMAAddress) -> UInt64 { session.space.guest(address).rawValue / DeviceSpace.page }
    var written = session.ringPages.device.map { page($0) }
    if context.device.writes { written.append(page(session.landing)) }
    try expect(marked(log, written), "pages \(written) were written, and \(log.pages) are marked")
    // Everything that the driver did not give the device to write.
    let possible = Set(
      written + session.rings.flatMap { session.pages(of: $0).device.map { page($0) } }
        + session.pieces.map { page($0) })
    let wrong = log.pages.filter { !possible.contains($0) }
    try expect(wrong.isEmpty, "pages \(wrong.prefix(8)) are marked, and nothing was written there")
    return "\(log.pages.count) pages are marked, those of the used ring and the buffers"
  }

  private static func marked(_ log: FrontendLog, _ pages: [UInt64]) -> Bool {
    for _ in 0..<20 {
      if Set(log.pages).isSuperset(of: pages) { return true }
      pause(.milliseconds(5))
    }
    return false
  }

  /// Requests in flight when a connection ends.
  static let inflight: [Check] = [
    Check(
      "inflight", "GET_INFLIGHT_FD", "In-flight memory is made, taken and used.",
      protocolFeatures: .inflightSharedMemory
    ) { context throws(Finding) in
      let session = try Session(context)
      let area = try installed(session)
      let asked = UInt16(context.device.queueCount)
      let got = area.description
      try expect(
        got.queueCount >= asked && got.queueSize >= session.setup.size,
        "it is for \(got.queueCount) queues of \(got.queueSize)")
      try session.start()
      for _ in 0..<3 { try session.roundTrip() }
      // the record is for as many descriptors as the back-end said, which may be more than were asked for
      if context.device.queue == 0 { try recorded(area, 3, got.queueSize) }
      return "\(got.mmapSize) bytes for \(got.queueCount) queues of \(got.queueSize)"
    },
    Check(
      "inflight-kept", "R126", "Requests under way when the connection ended are done once, not more and not less.",
      protocolFeatures: .inflightSharedMemory
    ) { context throws(Finding) in
      let session = try Session(context)
      let area = try installed(session)
      try session.start()
      try session.roundTrip()
      for _ in 0..<8 { try session.add() }
      session.publish()
      return try survive(session, area, 8)
    },
    Check(
      "inflight-held", "R126", "Requests that wait for a translation when the connection ends are done once.",
      features: .accessPlatform, protocolFeatures: .inflightSharedMemory
    ) { context throws(Finding) in try vanish(context, channelFirst: false) },
    Check(
      "inflight-channel", "R126", "The same where the back-end's channel is heard to end before the connection does.",
      features: .accessPlatform, protocolFeatures: .inflightSharedMemory
    ) { context throws(Finding) in try vanish(context, channelFirst: true) },
    Check(
      "inflight-stopped", "R126",
      "A ring that is stopped right after its start has done what a predecessor left in flight, or says that it has not.",
      protocolFeatures: .inflightSharedMemory
    ) { context throws(Finding) in
      let session = try Session(context, Setup(size: context.device.longRing))
      let (area, count) = try left(session, session.room)
      // One message behind the other, nothing waited for.
      session.frontend.acknowledgeAll(false)
      try session.resume(at: taken(session, count))
      let said = try stopped(session, try session.stop(), count)
      session.frontend.acknowledgeAll(true)
      withExtendedLifetime(area) {}
      return said
    },
    Check(
      "inflight-stop-late", "R126",
      "The same where it needs a translation that comes while the stop is under way (R064).",
      features: .accessPlatform, protocolFeatures: .inflightSharedMemory, needsWrites: true
    ) { context throws(Finding) in
      let session = try Session(context, .platform)
      let (area, count) = try left(session, 4)
      let page = session.first.rawValue
      session.frontend.onMiss { $0.address & ~4095 == page ? .hold : .fromMappings }
      try session.resume(at: taken(session, count))
      try session.awaitMiss(on: session.first, "the buffer of a request that was in flight was not asked for")
      // On a busy machine an answer that comes after a while may come before the stop.
      let states = try session.stop {
        session.settle()
        session.frontend.releaseHeldMisses()
      }
      let said = try stopped(session, states, count)
      withExtendedLifetime(area) {}
      return said
    },
    Check(
      "stop-abandoned", "R126",
      "A front-end that goes while a stop waits for a translation leaves a back-end that serves the next one.",
      features: .accessPlatform, protocolFeatures: .inflightSharedMemory, needsWrites: true
    ) { context throws(Finding) in try stopAndGo(context) },
  ]

  /// Goes while requests wait for a translation, and comes back.
  fileprivate static func vanish(_ context: CheckContext, channelFirst: Bool) throws(Finding) -> String {
    let session = try Session(context, .platform)
    let area = try installed(session)
    try session.start()
    try session.roundTrip()
    try holdFirst(session)
    for _ in 0..<3 { try session.add() }
    session.publish()
    if channelFirst {
      session.frontend.closeChannel()
      session.settle()
    }
    return try survive(session, area, 4)
  }

  /// Stops a ring whose requests in flight wait for a translation that never comes, and goes.
  fileprivate static func stopAndGo(_ context: CheckContext) throws(Finding) -> String {
    let session = try Session(context, .platform)
    let (area, count) = try left(session, 4)
    let page = session.first.rawValue
    session.frontend.onMiss { $0.address & ~4095 == page ? .silence : .fromMappings }
    try session.resume(at: taken(session, count))
    try session.awaitMiss(on: session.first, "the buffer of a request that was in flight was not asked for")
    let stop = FrontendRequest.getVringBase(VringState(index: UInt32(context.device.queue), number: 0))
    try judged { () throws(FrontendError) in
      try session.frontend.sendRaw(stop.encoded(), request: stop.kind.rawValue, answers: 1)
    }
    session.settle()
    session.frontend.close()
    withExtendedLifetime(area) {}
    try context.oneRequest(Setup())
    return "the next front-end was served"
  }

  /// Makes requests that a predecessor took and did not finish, with its record of them. Returns that, and how many
  /// there are.
  private static func left(_ session: Session, _ wanted: Int) throws(Finding) -> (FrontendInflight, Int) {
    let area = try make(session)
    var heads: [Int] = []
    for _ in 0..<wanted { heads.append(Int(try session.add())) }
    _ = session.ring.queue.publish()
    let description = area.description
    // {features 64, version 16, descriptors 16, last batch 16, used index 16}, and of each descriptor {in flight 8,
    // padding, next 16, counter 64}. Pieces begin at multiples of 64, and the layout behind them is the back-end's own.
    let start = session.context.device.queue * (Int(description.mmapSize) / max(1, Int(description.queueCount)) & ~63)
    let size = description.queueSize
    try judged { () throws(FrontendError) in
      try area.overwrite(
        [UInt8](repeating: 0, count: 8) + RawDescriptor.bytes(1, 2) + RawDescriptor.bytes(UInt64(size), 2) + [
          0, 0, 0, 0,
        ], at: start)
      for (order, head) in heads.enumerated() {
        try area.overwrite(
          [1, 0, 0, 0, 0, 0, 0, 0] + RawDescriptor.bytes(UInt64(order), 8), at: start + 16 + 16 * head)
      }
      try session.frontend.install(area)
    }
    return (area, heads.count)
  }

  /// The position of the predecessor, which had taken so many.
  private static func taken(_ session: Session, _ count: Int) -> [QueueState] {
    let here = QueueState(available: UInt16(count), used: nil)
    return session.rings.map { $0.index == session.context.device.queue ? here : .initial }
  }

  /// What is before the position at which the ring was stopped is done. Then it goes on, and everything is done once.
  private static func stopped(
    _ session: Session, _ states: [QueueState], _ count: Int
  ) throws(Finding) -> String {
    let (position, used) = (states[session.context.device.queue].available, session.ring.usedIndex(session.space))
    try expect(
      position == used, "its position is \(position), and \(used) of \(count) requests are done: the rest would be lost"
    )
    session.frontend.onMiss { _ in .fromMappings }
    session.frontend.acknowledgeAll(true)
    try session.resume(at: states)
    session.ring.events?.kick()
    for done in 0..<count {
      guard let used = try session.used() else { throw .broken("\(count - done) of \(count) requests were lost") }
      if let fault = session.fault(used) { throw .broken(fault) }
    }
    try session.expectNothing("a request was done twice")
    try session.roundTrip()
    return "\(used) of \(count) requests were done before the answer, and all in the end"
  }

  private static func make(_ session: Session) throws(Finding) -> FrontendInflight {
    let count = UInt16(session.context.device.queueCount)
    return try judged { () throws(FrontendError) in
      try session.frontend.makeInflight(queueCount: count, queueSize: session.setup.size)
    }
  }

  private static func installed(_ session: Session) throws(Finding) -> FrontendInflight {
    let area = try make(session)
    try judged { () throws(FrontendError) in try session.frontend.install(area) }
    return area
  }

  /// The first queue's record, a split ring's: {features 64, version 16, descriptors 16, last batch 16, used index 16,
  /// …}.
  private static func recorded(_ area: FrontendInflight, _ used: UInt16, _ size: UInt16) throws(Finding) {
    var seen: (version: UInt16, count: UInt16, used: UInt16) = (0, 0, 0)
    for _ in 0..<20 {
      let bytes = try judged { () throws(FrontendError) in try area.bytes() }
      guard bytes.count >= 16 else { throw .broken("the memory is \(bytes.count) bytes short") }
      func word(_ at: Int) -> UInt16 { UInt16(bytes[at]) | UInt16(bytes[at + 1]) << 8 }
      seen = (word(8), word(10), word(14))
      if seen == (1, size, used) { return }
      // The record may follow the used index.
      pause(.milliseconds(5))
    }
    throw .broken(
      "after \(used) requests the record says version \(seen.version), \(seen.count) descriptors, used index \(seen.used)"
    )
  }

  /// Drops the connection, comes back, and counts what is done.
  private static func survive(_ session: Session, _ area: FrontendInflight, _ count: Int) throws(Finding) -> String {
    try session.reconnect(area)
    let here = QueueState(available: session.ring.usedIndex(session.space), used: nil)
    try session.resume(at: session.rings.map { $0.index == session.context.device.queue ? here : .initial })
    session.ring.events?.kick()
    for done in 0..<count {
      guard let used = try session.used() else { throw .broken("\(count - done) of \(count) requests were lost") }
      if let fault = session.fault(used) { throw .broken(fault) }
    }
    try session.expectNothing("a request was done twice")
    try session.roundTrip()
    return "all of \(count) requests were done, each once, and the ring went on"
  }
}
