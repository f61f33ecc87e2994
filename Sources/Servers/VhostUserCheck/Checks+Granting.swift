internal import DMA
internal import Examination
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio

extension Check {
  /// A page that allows one access, used for it first and for the other one afterwards, and the other way round; and a
  /// front-end whose answers say that both are allowed, as QEMU's do for every page. What was not asked for is not
  /// granted.
  static let granting: [Check] = [
    Check(
      "read-then-write", "R084",
      "A page that is mapped for reading, and was read, is not written: writing is asked for again (R118).",
      features: .accessPlatform, needsWrites: true
    ) { context throws(Finding) in
      try mustRead(context)
      let session = try Session(context, .platform)
      try session.space.permit(session.first, .read)
      try serveOnce(session)
      session.landing = DMAAddress(session.first.rawValue + 2048)
      return try mayNotWrite(session)
    },
    Check(
      "ring-then-write", "R084",
      "The page of a ring's descriptors, mapped for reading and read, is not written (R118).",
      features: .accessPlatform, needsWrites: true
    ) { context throws(Finding) in
      let session = try Session(context, .platform)
      let pages = session.ringPages.descriptor
      for page in pages { try session.space.permit(page, .read) }
      try serveOnce(session)
      // A ring of 64 leaves most of its page free.
      session.landing = DMAAddress(pages[0].rawValue + 2048)
      return try mayNotWrite(session)
    },
    Check(
      "write-then-read", "R083",
      "A page that is mapped for writing, and was written, is not read: reading is asked for again (R118).",
      features: .accessPlatform, needsWrites: true
    ) { context throws(Finding) in
      try mustRead(context)
      let session = try Session(context, .platform)
      let page = session.landing
      try session.space.permit(page, .write)
      try serveOnce(session)
      session.landing = try session.space.allocate()
      session.pieces[0] = DMAAddress(page.rawValue + 2048)
      let before = session.misses(on: page).count
      try session.submit()
      if let used = try unharmed(session) {
        try expect(session.fault(used) != nil, "the request was served: the page was read")
      }
      let asked = session.misses(on: page).dropFirst(before).contains { $0.permission.contains(.read) }
      try expect(asked, "the page was written, and reading it was not asked for")
      try recover(session)
      return "reading was asked for, refused, and the request not served"
    },
    Check(
      "refused-write", "R118", "A page that may not be written can still be read after the write was refused.",
      features: .accessPlatform, needsWrites: true
    ) { context throws(Finding) in
      try mustRead(context)
      let session = try Session(context, .platform)
      let page = session.landing
      try session.space.permit(page, .read)
      session.frontend.onMiss { _ in .generous }
      try session.start()
      _ = try mayNotWrite(session)
      session.pieces[0] = page
      try session.startOver()
      try session.roundTrip()
      return "it was refused the write, and read the page afterwards"
    },
    Check(
      "refused-read", "R118", "A page that may not be read can still be written after the read was refused.",
      features: .accessPlatform, needsWrites: true
    ) { context throws(Finding) in
      try mustRead(context)
      let session = try Session(context, .platform)
      let page = session.first
      try session.space.permit(page, .write)
      session.frontend.onMiss { _ in .generous }
      try session.start()
      try session.submit()
      if let used = try unharmed(session) {
        try expect(session.fault(used) != nil, "the request was served: the page was read")
      }
      try recover(session)
      session.landing = page
      try session.startOver()
      try session.roundTrip()
      return "it was refused the read, and wrote to the page afterwards"
    },
  ]

  private static func mustRead(_ context: CheckContext) throws(Finding) {
    if context.device.request.readable.isEmpty { throw .notOffered("a \(context.device) device reads no buffers") }
  }

  /// Starts with answers that allow more than was asked for, and has a request served.
  private static func serveOnce(_ session: Session) throws(Finding) {
    session.frontend.onMiss { _ in .generous }
    try session.start()
    try session.roundTrip()
  }

  /// A request whose answer has to go where the device may not write: it asks, is refused, and does not.
  private static func mayNotWrite(_ session: Session) throws(Finding) -> String {
    let place = session.landing
    let guest = session.space.guest(place)
    let before = session.misses(on: place).count
    try session.submit()
    let used = try unharmed(session)
    try expect(
      session.space.isBlank(guest, count: session.landingCount),
      "the page was written, and it is mapped for reading only")
    if let used { try expect(session.fault(used) != nil, "the request was used as if it had been served") }
    let asked = session.misses(on: place).dropFirst(before).contains { $0.permission.contains(.write) }
    try expect(asked, "writing to the page was not asked for")
    try recover(session)
    return "writing was asked for, refused, and not one byte written"
  }
}
