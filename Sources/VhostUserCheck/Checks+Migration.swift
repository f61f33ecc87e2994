internal import DMA
internal import HostIO
internal import VhostUser
internal import Virtio

extension Check {
  /// The dirty log.
  static let log: [Check] = [
    Check(
      "log", "R132", "Pages that were written are marked in the log, and others are not.",
      features: Frontend.logAllBit, protocolFeatures: .logSharedMemory
    ) { bench throws(Finding) in try logged(bench, Setup()) },
    Check(
      "log-translated", "R134", "Behind an IOMMU the log is marked by guest address, whatever the device addresses are (R136).",
      features: [Frontend.logAllBit, .accessPlatform], protocolFeatures: .logSharedMemory
    ) { bench throws(Finding) in try logged(bench, .platform) },
    Check(
      "log-scattered", "R135", "A used ring over several pages is marked page by page.",
      features: [Frontend.logAllBit, .accessPlatform], protocolFeatures: .logSharedMemory
    ) { bench throws(Finding) in try logged(bench, Setup(translated: true, scattered: true)) },
    Check(
      "log-switched", "SET_FEATURES", "Logging can be switched on and off while a ring runs.",
      features: Frontend.logAllBit, protocolFeatures: .logSharedMemory
    ) { bench throws(Finding) in
      let session = try bench.session()
      try session.roundTrip()
      let log = try judged { () throws(FrontendError) in try session.frontend.startLogging() }
      try session.roundTrip()
      if bench.device.writes {
        let page = session.space.guest(session.landing).rawValue / DeviceSpace.page
        try expect(marked(log, [page]), "the page of the answer was not marked after logging was switched on")
      }
      try judged { () throws(FrontendError) in try session.frontend.stopLogging() }
      // Whoever goes on marking marks too much, which harms nobody.
      try session.roundTrip()
      return "requests were served before, with and after logging"
    },
  ]

  private static func logged(_ bench: Bench, _ setup: Setup) throws(Finding) -> String {
    let session = try Session(bench, setup)
    let log = try judged { () throws(FrontendError) in try session.frontend.startLogging() }
    try session.start()
    _ = try laps(session)
    func page(_ address: DMAAddress) -> UInt64 { session.space.guest(address).rawValue / DeviceSpace.page }
    var written = session.ringPages.device.map { page($0) }
    if bench.device.writes { written.append(page(session.landing)) }
    try expect(marked(log, written), "pages \(written) were written, and \(log.pages) are marked")
    // Everything that the driver gave nobody to write.
    let possible = Set(written + session.rings.flatMap { session.pages(of: $0).device.map { page($0) } } + session.pieces.map { page($0) })
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
      "inflight", "GET_INFLIGHT_FD", "In-flight memory is made, taken and used.", protocolFeatures: .inflightSharedMemory
    ) { bench throws(Finding) in
      let session = try Session(bench)
      let area = try make(session)
      let asked = UInt16(bench.device.queueCount)
      let got = area.description
      try expect(got.queueCount >= asked && got.queueSize >= session.setup.size, "it is for \(got.queueCount) queues of \(got.queueSize)")
      try session.start()
      for _ in 0..<3 { try session.roundTrip() }
      // the record is for as many descriptors as the back-end said, which may be more than were asked for
      if bench.device.queue == 0 { try recorded(area, 3, got.queueSize) }
      return "\(got.mmapSize) bytes for \(got.queueCount) queues of \(got.queueSize)"
    },
    Check(
      "inflight-kept", "R126", "Requests under way when the connection ended are done once, not more and not less.", protocolFeatures: .inflightSharedMemory
    ) { bench throws(Finding) in
      let session = try Session(bench)
      let area = try make(session)
      try session.start()
      try session.roundTrip()
      for _ in 0..<8 { try session.add() }
      session.publish()
      return try survive(session, area, 8)
    },
    Check(
      "inflight-held", "R126", "Requests that wait for a translation when the connection ends are done once.",
      features: .accessPlatform, protocolFeatures: .inflightSharedMemory
    ) { bench throws(Finding) in
      let session = try Session(bench, .platform)
      let area = try make(session)
      try session.start()
      try session.roundTrip()
      try holdFirst(session)
      for _ in 0..<3 { try session.add() }
      session.publish()
      return try survive(session, area, 4)
    },
  ]

  private static func make(_ session: Session) throws(Finding) -> FrontendInflight {
    let count = UInt16(session.bench.device.queueCount)
    return try judged { () throws(FrontendError) in
      let area = try session.frontend.makeInflight(queueCount: count, queueSize: session.setup.size)
      try session.frontend.install(area)
      return area
    }
  }

  /// The first queue's record, a split ring's: {features 64, version 16, descriptors 16, last batch 16, used index 16, …}.
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
    throw .broken("after \(used) requests the record says version \(seen.version), \(seen.count) descriptors, used index \(seen.used)")
  }

  /// Drops the connection, comes back, and counts what is done.
  private static func survive(_ session: Session, _ area: FrontendInflight, _ count: Int) throws(Finding) -> String {
    try session.reconnect(area)
    let here = QueueState(available: session.ring.usedIndex(session.space), used: nil)
    try session.resume(at: session.rings.map { $0.index == session.bench.device.queue ? here : .initial })
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
