internal import DMA
internal import Examination
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio
internal import VirtioDrivers

extension Check {
  /// What addresses mean where it is easily got wrong.
  static let addressing: [Check] = [
    Check(
      "pass-through", "R005",
      "One translation of all memory to itself, as an IOMMU in pass-through gives it, is enough.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(Setup(translated: true, identity: true))
      try session.roundTrip()
      // The ring runs: translations that came before its start may be dropped with it.
      var all = try session.update(DMAAddress(DeviceSpace.guestStart))
      all.size = DeviceSpace.byteCount
      try session.translate(all)
      let before = session.frontend.counts.misses
      for _ in 0..<3 {
        for i in session.pieces.indices { session.pieces[i] = try session.space.allocate() }
        try session.roundTrip()
      }
      let count = session.frontend.counts.misses - before
      try expect(count == 0, "\(count) translations were asked for, and all memory had been told")
      return "three requests, whose buffers were on other pages each time, were served, and nothing was asked for"
    },
    Check(
      "guest-addresses-unused", "R101",
      "With ACCESS_PLATFORM a device address that happens to be a guest address is translated all the same.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      let (here, there) = (session.space.guestPage(), session.space.guestPage())
      let page = DMAAddress(here.rawValue)
      try session.space.map(page, to: there)
      session.space.blank(here)
      if context.device.writes { session.landing = page } else { session.pieces[0] = page }
      try session.submit()
      guard let used = try session.used() else { throw session.nothingCame() }
      try expect(session.space.isBlank(here), "the answer landed at the guest address of the same number")
      try expect(!session.misses(on: page).isEmpty, "the address was never asked for")
      if let fault = session.fault(used) { throw .broken(fault) }
      return "the address was asked for, and led elsewhere"
    },
    Check(
      "order-platform", "R020", "ORDER_PLATFORM goes with ACCESS_PLATFORM and without it.", features: .orderPlatform
    ) { context throws(Finding) in
      try context.oneRequest(Setup(features: .orderPlatform))
      guard context.offeredFeatures.contains(.accessPlatform) else {
        return "served without ACCESS_PLATFORM, which is not offered"
      }
      try context.oneRequest(Setup(features: .orderPlatform, translated: true))
      return "served with ACCESS_PLATFORM and without it"
    },
    Check(
      "everything-translated", "R021", "ACCESS_PLATFORM goes with all ring features together that are offered.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let all: Features = [.ringPacked, .indirectDescriptors, .eventIndex, .inOrder, .orderPlatform]
      let features = context.offeredFeatures.intersection(all)
      let session = try context.session(Setup(features: features, translated: true))
      let count = try laps(session)
      if features.contains(.indirectDescriptors) { for _ in 0..<3 { try session.roundTrip(indirect: true) } }
      return "\(count) requests with bits 33 and \(features.bits.map(String.init).joined(separator: ", "))"
    },
    Check(
      "event-scattered", "R045", "The event fields at the end of the areas are found on pages of their own.",
      features: [.accessPlatform, .eventIndex]
    ) { context throws(Finding) in
      let session = try context.session(Setup(features: .eventIndex, translated: true, scattered: true))
      let count = try laps(session)
      try called(session)
      return "\(count) requests over a ring of 64, and a call when it was asked for"
    },
    Check(
      "buffer-anywhere", "R047", "Buffers may start and end anywhere in scattered pages, those that are read as well.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      var starts: [DMAAddress] = []
      for _ in session.pieces.indices { starts.append(try session.space.allocate(2, scattered: true)) }
      let leads: [Int] = [1, 2, 7, 15, 16, 63, 255, 511]
      for lead in leads {
        for i in starts.indices {
          // So many bytes before the boundary, and one behind it at least where there are two.
          let before = max(1, min(lead, session.pieceCount(i) - 1))
          session.pieces[i] = DMAAddress(starts[i].rawValue + DeviceSpace.page - UInt64(before))
        }
        try session.roundTrip()
      }
      return "\(leads.count) requests whose buffers cross a boundary, each elsewhere"
    },
    Check(
      "indirect-scattered", "R049", "An indirect table may cross a page whose neighbour is elsewhere.",
      features: [.accessPlatform, .indirectDescriptors]
    ) { context throws(Finding) in
      guard context.device.request.pieces > 1 else {
        throw .notOffered("a \(context.device) request has one buffer: its table is one entry long")
      }
      let session = try context.session(Setup(features: .indirectDescriptors, translated: true, scatteredTables: true))
      for _ in 0..<3 { try session.roundTrip(indirect: true) }
      return "three requests whose first table entry is on another page than the others"
    },
    Check(
      "direct-then-indirect", "R051", "Descriptors in the ring may be followed by an indirect one.",
      features: .indirectDescriptors
    ) { context throws(Finding) in
      let count = context.device.request.pieces
      guard count > 1 else {
        throw .notOffered("a \(context.device) request has one buffer: there is nothing to put before its table")
      }
      let session = try context.session(Setup(features: .indirectDescriptors))
      try session.fill()
      func descriptor(_ i: Int, next: UInt16?) -> RawDescriptor {
        var flags: RawDescriptor.Flags = i < context.device.request.readable.count ? [] : .write
        if next != nil { flags.insert(.next) }
        return RawDescriptor(session.pieces[i].rawValue, UInt32(session.pieceCount(i)), flags, next: next ?? 0)
      }
      let entries = (1..<count).map { descriptor($0, next: $0 < count - 1 ? UInt16($0) : nil) }
      let table = try session.space.allocate()
      session.space.write(entries.flatMap(\.split), to: table)
      session.offer([descriptor(0, next: 1), RawDescriptor(table.rawValue, UInt32(16 * entries.count), .indirect)])
      guard let written = session.bareUsed() else { throw session.nothingCame() }
      if let fault = session.fault(written: written) { throw .broken(fault) }
      return "a request with one descriptor in the ring and \(entries.count) in a table was served"
    },
    Check(
      "packed-permissions", "R052",
      "A packed ring's event areas need no more than reading (the driver's) and writing (the device's) (R086).",
      features: [.accessPlatform, .ringPacked]
    ) { context throws(Finding) in
      let session = try Session(context, Setup(features: .ringPacked, translated: true))
      for page in session.ringPages.driver { try session.space.permit(page, .read) }
      for page in session.ringPages.device { try session.space.permit(page, .write) }
      try session.start()
      for _ in 0..<3 { try session.roundTrip() }
      return "three requests were served"
    },
    Check(
      "ring-lost", "R076",
      "A ring whose pages are gone is left alone, without asking on and on, and works when it is set up again (R112).",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      let pages = session.ringPages.descriptor + session.ringPages.driver + session.ringPages.device
      for page in pages {
        session.space.hide(page)
        try session.invalidate(page)
      }
      let before = session.frontend.counts.misses
      for _ in 0..<3 {
        session.ring.events?.kick()
        session.settle()
      }
      try session.expectAnswer()
      let count = session.frontend.counts.misses - before
      try expect(count < 1000, "it asked \(count) times in \(seconds(context.quiet * 3)) for pages that are not there")
      for page in pages { try session.space.map(page, to: session.space.guest(page)) }
      try recover(session)
      return "it asked \(count) times in three kicks, and the ring worked after it was set up again"
    },
    Check(
      "partly-mapped", "R087", "A buffer of which a page is missing is not said to have been filled (R094).",
      features: .accessPlatform, needsWrites: true
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      let start = try session.space.allocate(2, scattered: true)
      let missing = DMAAddress(start.rawValue + DeviceSpace.page)
      let half = session.landingCount / 2
      session.space.hide(missing)
      session.landing = DMAAddress(missing.rawValue - UInt64(half))
      try session.submit()
      let used = try unharmed(session)
      if let used {
        let lies = context.device.answersHaveStatus ? session.fault(used) == nil : used.written > half
        try expect(
          !lies, "the request was used as if \(used.written) bytes had been written, and there is room for \(half)")
      }
      try expect(!session.misses(on: missing).isEmpty, "the page that is missing was never asked for")
      try recover(session)
      return used == nil ? "the request came to nothing, the back-end lives" : "the request was used as one that failed"
    },
    Check(
      "channel", "R124", "The back-end's own channel brings questions about addresses, and never answers.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      for _ in 0..<3 { try session.roundTrip() }
      try session.expectAnswer()
      let (strays, misses) = (session.frontend.counts.strays, session.frontend.counts.misses)
      try expect(strays == 0, "\(strays) messages were an UPDATE or INVALIDATE, which are the front-end's")
      return "\(misses) misses, and nothing else about translations"
    },
    Check(
      "iotlb-type", "R127", "A translation message of an unknown type does no harm.", features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      var bytes = FrontendRequest.iotlb(try session.update(session.first)).encoded(needsReply: true)
      // The type is the last byte before six of padding.
      bytes[bytes.count - 7] = 9
      let message = bytes
      let said = try refusal { () throws(FrontendError) in
        try session.frontend.sendRaw(message, request: FrontendRequest.Kind.iotlb.rawValue, answers: 1)
        _ = try session.frontend.ask(.getFeatures)
      }
      if let said { return said }
      try session.roundTrip()
      return "it was answered, and the next request was served"
    },
  ]
}
