internal import DMA
internal import Examination
internal import HostIO
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio

extension Check {
  /// How addresses become memory behind an IOMMU.
  static let translation: [Check] = [
    Check(
      "no-misses-without", "R006", "Without ACCESS_PLATFORM nothing is asked for.", protocolFeatures: .backendRequests
    ) { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      let count = session.frontend.counts.misses
      try expect(count == 0, "\(count) translations were asked for")
      return "no miss while a request was served"
    },
    Check(
      "translated", "R100", "With ACCESS_PLATFORM ring and buffer addresses are device addresses.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      for _ in 0..<3 { try session.roundTrip() }
      return "three requests were served, \(session.frontend.counts.misses) translations asked for"
    },
    Check(
      "miss-names", "R103", "A miss names the byte that is needed and the access.", features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      return try missesAreRight(session)
    },
    Check(
      "empty-at-first", "R102", "A new connection starts without translations (R126).", features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      session.frontend.close()
      let next = try context.session(.platform)
      try next.roundTrip()
      try expect(
        !next.misses(on: next.first).isEmpty, "the second connection did not ask for the buffer at \(hex(next.first))")
      return "the second connection asked again"
    },
    Check("asked-once", "R115", "A miss that is open is not asked again.", features: .accessPlatform) {
      context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      try holdFirst(session)
      for _ in 0..<3 {
        session.ring.events?.kick()
        pause(.milliseconds(15))
      }
      let count = session.misses(on: session.first).count - 1
      try expect(count == 1, "it was asked for \(count) times while the answer was held")
      session.frontend.releaseHeldMisses()
      try session.finish()
      return "one miss during 45 ms and three kicks"
    },
    Check(
      "unsolicited", "R106", "A translation that was not requested is taken and used.", features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      let page = try session.space.allocate()
      try session.translate(try session.update(page))
      session.pieces[0] = page
      try session.roundTrip()
      let count = session.misses(on: page).count
      try expect(count == 0, "the page was asked for, though it had been told")
      return "a buffer was used without being asked for"
    },
    Check(
      "update-outside", "R107", "A translation that leads out of the memory table is refused.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      let page = try session.space.allocate()
      var message = try session.update(page)
      message.frontendAddress = 0x6600_0000_0000
      let said = try refusal { () throws(FrontendError) in try session.frontend.sendTranslation(message) }
      guard let said else {
        throw .broken("an UPDATE to \(hex(message.frontendAddress)) was acknowledged as a success")
      }
      if session.frontend.failure != nil { return said }
      session.pieces[0] = page
      try session.roundTrip()
      return "\(said), and the right translation was asked for afterwards"
    },
    Check("update-empty", "R108", "A translation of no bytes is refused.", features: .accessPlatform) {
      context throws(Finding) in
      let session = try context.session(.platform)
      var message = try session.update(session.first)
      message.size = 0
      let said = try refusal { () throws(FrontendError) in try session.frontend.sendTranslation(message) }
      guard let said else { throw .broken(Check.tookIt) }
      return said
    },
    Check(
      "update-wraps", "R108", "A translation that passes the end of the address space is refused (R059).",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      var message = try session.update(session.first)
      message.address = 0xffff_ffff_ffff_f000
      message.size = 8192
      let said = try refusal { () throws(FrontendError) in try session.frontend.sendTranslation(message) }
      guard let said else { throw .broken(Check.tookIt) }
      return said
    },
    Check(
      "update-twice", "R109", "A translation that comes twice does no harm.", features: .accessPlatform
    ) { context throws(Finding) in
      let session = try Session(context, .platform)
      session.frontend.onMiss { _ in .twice }
      try session.start()
      for _ in 0..<3 { try session.roundTrip() }
      return "every one of \(session.frontend.counts.misses) misses was answered twice"
    },
    Check(
      "update-replaces", "R109", "A second translation of an address replaces the first, or is refused.",
      features: .accessPlatform, needsWrites: true
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      let old = session.space.guest(session.landing)
      let new = session.space.guestPage()
      let message = try session.update(session.landing, at: new)
      if let said = try refusal({ () throws(FrontendError) in try session.frontend.sendTranslation(message) }) {
        return said
      }
      session.space.hide(session.landing)
      try session.space.map(session.landing, to: new)
      session.space.blank(old)
      try session.submit()
      guard let used = try session.used() else { throw session.nothingCame() }
      try expect(
        session.space.isBlank(old, count: session.landingCount), "the answer landed where the address led before")
      if let fault = session.fault(used) { throw .broken(fault) }
      return "the answer landed where the second one leads"
    },
    Check("scattered-ring", "R043", "Ring areas may be scattered over pages.", features: .accessPlatform) {
      context throws(Finding) in
      let session = try context.session(Setup(translated: true, scattered: true))
      let count = try laps(session)
      return "\(count) requests over a ring of 64 whose areas cross pages that are no neighbours"
    },
    Check(
      "scattered-packed", "R043", "A packed ring may be scattered over pages.",
      features: [.accessPlatform, .ringPacked]
    ) { context throws(Finding) in
      let session = try context.session(Setup(features: .ringPacked, translated: true, scattered: true))
      let count = try laps(session)
      return "\(count) requests over a ring of 64 whose pages are no neighbours"
    },
    Check(
      "scattered-buffer", "R046", "A buffer's pages may be scattered (R119).", features: .accessPlatform,
      needsWrites: true
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      // What it has to bring is known from one whose buffers are in one piece.
      try session.roundTrip()
      let pages = try session.space.allocate(2, scattered: true)
      // Half of it on each page.
      session.landing = DMAAddress(pages.rawValue + 4096 - UInt64(session.landingCount / 2))
      for _ in 0..<2 { try session.roundTrip() }
      return "a buffer across two pages that are no neighbours was served"
    },
    Check(
      "indirect-translated", "R048",
      "An indirect table is read through translations, with read permission only (R050).",
      features: [.accessPlatform, .indirectDescriptors]
    ) { context throws(Finding) in
      let session = try Session(context, Setup(features: .indirectDescriptors, translated: true))
      for page in session.tablePages { try session.space.permit(page, .read) }
      try session.start()
      for _ in 0..<3 { try session.roundTrip(indirect: true) }
      return "three requests whose table was mapped for reading"
    },
    Check(
      "packed-translated", "R052", "A packed ring is read and written through translations.",
      features: [.accessPlatform, .ringPacked]
    ) { context throws(Finding) in
      let session = try context.session(Setup(features: .ringPacked, translated: true))
      return "\(try laps(session)) requests over a ring of 64"
    },
    Check(
      "event-translated", "R045", "With event indexes behind an IOMMU requests are served.",
      features: [.accessPlatform, .eventIndex]
    ) { context throws(Finding) in
      let session = try context.session(Setup(features: .eventIndex, translated: true))
      return "\(try laps(session)) requests over a ring of 64"
    },
    Check(
      "big-working-set", "R117", "More pages in use than a cache has room for are served.", features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      let guests = (0..<8).map { _ in session.space.guestPage() }
      let start = session.pieces[0]
      for i in 0..<2560 {
        let page = DMAAddress(0x1_0000_0000 + UInt64(i) * DeviceSpace.page)
        try session.space.map(page, to: guests[i % 8])
        session.pieces[0] = page
        try session.roundTrip()
      }
      session.pieces[0] = start
      try session.roundTrip()
      return "2560 pages one after the other"
    },
    Check(
      "without-after-with", "R065", "A session without ACCESS_PLATFORM works after one with it.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      session.frontend.close()
      let plain = try context.session()
      try plain.roundTrip()
      try expect(plain.frontend.counts.misses == 0, "it asked for \(plain.frontend.counts.misses) translations")
      return "a request was served and nothing asked for"
    },
    Check(
      "memory-replaced-translated", "R113", "When memory was replaced, translations are asked for anew.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      return try servesAfterReplacement(session)
    },
  ]

  /// Two laps and more of a ring, as many requests at once as it has room for. Returns how many.
  static func laps(_ session: Session) throws(Finding) -> Int {
    let rounds = 2 * Int(session.setup.size) / session.room + 1
    for _ in 0..<rounds { try session.batch(session.room) }
    return rounds * session.room
  }

  /// Every miss must lie in something that the driver gave the device, and ask for an access that makes sense there.
  private static func missesAreRight(_ session: Session) throws(Finding) -> String {
    let misses = session.frontend.counts.missed
    try expect(!misses.isEmpty, "nothing was asked for")
    for miss in misses {
      let place = hex(miss.address)
      guard let area = session.areas.first(where: { $0.range.contains(miss.address) }) else {
        throw .broken("a miss at \(place), where the driver put nothing")
      }
      let access = miss.permission.rawValue
      try expect(access >= 1 && access <= 3, "the miss at \(place) asks for access \(access)")
      try expect(
        miss.permission.isSuperset(of: area.access),
        "the miss at \(place), \(area.name), asks for access \(access) and needs \(area.access.rawValue)")
    }
    return "\(misses.count) misses, each in a ring area or buffer, each with the access needed there"
  }

  /// Takes the probe's first page from the device's translations, makes a request and holds the miss that follows.
  static func holdFirst(_ session: Session) throws(Finding) {
    let page = session.first.rawValue
    _ = try? session.frontend.missHeld.drain()
    session.frontend.onMiss { $0.address & ~4095 == page ? .hold : .fromMappings }
    try session.invalidate(session.first)
    try session.submit()
    guard (try? session.frontend.missHeld.wait(timeout: session.context.patience)) == true else {
      throw .broken("the buffer at \(hex(page)) was not asked for again after an INVALIDATE of its page")
    }
  }
}
