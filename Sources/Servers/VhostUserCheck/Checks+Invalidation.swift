internal import DMA
internal import Examination
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio

extension Check {
  /// The end of translations.
  static let invalidation: [Check] = [
    Check(
      "invalidate", "R110", "After an INVALIDATE is acknowledged the old translation is used no more.",
      features: .accessPlatform
    ) { context throws(Finding) in
      try remapped(context) { session, page throws(Finding) in
        try session.translate(IOTLBMessage(kind: .invalidate, address: page.rawValue, size: DeviceSpace.page))
      }
    },
    Check(
      "invalidate-garbage", "R110", "An INVALIDATE's other fields mean nothing: QEMU sends what was on its stack.",
      features: .accessPlatform
    ) { context throws(Finding) in
      try remapped(context) { session, page throws(Finding) in try session.invalidate(page) }
    },
    Check(
      "invalidate-all", "R108", "An INVALIDATE of size 0 means everything.", features: .accessPlatform
    ) { context throws(Finding) in
      try remapped(context) { session, _ throws(Finding) in
        try session.translate(IOTLBMessage(kind: .invalidate, address: 0, size: 0))
      }
    },
    Check(
      "invalidate-lazy", "R108", "An INVALIDATE that ends at 2^64 is not taken for an empty one: VT-d's lazy flush.",
      features: .accessPlatform
    ) { context throws(Finding) in
      try remapped(context) { session, _ throws(Finding) in
        // As QEMU sends them: around the window for message-signalled interrupts.
        try session.translate(IOTLBMessage(kind: .invalidate, address: 0, size: 0xfee0_0000))
        try session.translate(IOTLBMessage(kind: .invalidate, address: 0xfef0_0000, size: 0xffff_ffff_0110_0000))
      }
    },
    Check(
      "invalidate-top", "R108", "An INVALIDATE of all but the last byte of the address space is carried out.",
      features: .accessPlatform
    ) { context throws(Finding) in
      try remapped(context) { session, _ throws(Finding) in
        try session.translate(IOTLBMessage(kind: .invalidate, address: 0, size: .max))
      }
    },
    Check(
      "restart-forgets", "R114",
      "A ring that is stopped takes its translations with it: what changes until it is started again is not told.",
      features: .accessPlatform
    ) { context throws(Finding) in
      // QEMU listens to the IOMMU only while the device runs.
      try remapped(context) { session, _ throws(Finding) in try session.startOver() }
    },
    Check(
      "invalidate-unknown", "R111", "An INVALIDATE of addresses that were never translated is acknowledged.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      try session.invalidate(DMAAddress(0x5000_0000_0000), DMAAddress(0x5000_0000_ffff))
      try session.roundTrip()
      return "acknowledged, and the ring goes on"
    },
    Check(
      "invalidate-part", "R111", "An INVALIDATE of a part of a translation ends that part at least.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      // Four pages in one translation; the second one is used, taken away and led elsewhere.
      let first = DMAAddress(0x3_0000_0000)
      let guest = session.space.guestPage()
      for _ in 0..<3 { _ = session.space.guestPage() }
      for i in 0..<4 as Range<UInt64> {
        try session.space.map(DMAAddress(first.rawValue + i * 4096), to: GuestAddress(guest.rawValue + i * 4096))
      }
      var message = try session.update(first)
      message.size = 4 * DeviceSpace.page
      try session.translate(message)
      session.pieces[0] = DMAAddress(first.rawValue + 4096)
      try session.roundTrip()
      let old = try session.space.move(session.pieces[0])
      session.space.blank(old)
      try session.invalidate(session.pieces[0])
      try session.roundTrip()
      try notStale(session, old, misses: 0)
      session.pieces[0] = first
      try session.roundTrip()
      return "the second of four pages was led elsewhere and followed"
    },
    Check(
      "ring-moved", "R112", "Ring pages that are led elsewhere are followed while the ring is idle (R044).",
      features: .accessPlatform
    ) { context throws(Finding) in
      try moved(context, Setup(translated: true, scattered: true))
    },
    Check(
      "packed-moved", "R112", "Pages of a packed ring that are led elsewhere are followed.",
      features: [.accessPlatform, .ringPacked]
    ) { context throws(Finding) in
      try moved(context, Setup(features: .ringPacked, translated: true))
    },
    Check(
      "invalidate-while-held", "R116", "An INVALIDATE is acknowledged while a miss waits for its answer.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      try holdFirst(session)
      try session.invalidate(DMAAddress(0x5000_0000_0000), DMAAddress(0x5000_0000_ffff))
      try session.invalidate(session.ring.layout.driverArea)
      session.frontend.releaseHeldMisses()
      try session.finish()
      return "acknowledged twice, and the request was served when the miss was answered"
    },
    Check(
      "unmap-in-flight", "R110", "Translations that end under requests at work end, one way or the other.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      let page = session.probed
      for _ in 0..<64 {
        // A miss that comes between the old page and the new one waits for the new one.
        session.frontend.onMiss { _ in .hold }
        try session.submit()
        let old = try session.space.move(page)
        session.frontend.onMiss { _ in .fromMappings }
        session.frontend.releaseHeldMisses()
        try session.invalidate(page)
        session.space.blank(old)
        // The first one may have been served before or after; the second one has to find the new page.
        try session.submit()
        for _ in 0..<2 {
          guard try session.used() != nil else { throw session.nothingCame() }
        }
        try expect(session.space.isBlank(old), "the old page was written after the INVALIDATE was acknowledged")
        session.space.reuse(old)
      }
      return "64 times"
    },
  ]

  /// Leads the page of the probe's answer, or of its first piece, elsewhere and tells the back-end by `tell`; then a
  /// request must be served there, and the old page be left alone.
  private static func remapped(
    _ context: CheckContext, _ tell: (Session, DMAAddress) throws(Finding) -> Void
  ) throws(Finding) -> String {
    let session = try context.session(.platform)
    try session.roundTrip()
    let page = session.probed
    let misses = session.misses(on: page).count
    let old = try session.space.move(page)
    session.space.blank(old)
    try tell(session, page)
    try session.submit()
    guard let used = try session.used() else { throw session.nothingCame() }
    try notStale(session, old, misses: misses, page)
    if let fault = session.fault(used) { throw .broken(fault) }
    return context.device.writes ? "the answer landed where the address leads now" : "the address was asked for again"
  }

  /// Throws if the back-end still used the old page: it wrote there, or did not ask again for one that it reads.
  static func notStale(_ session: Session, _ old: GuestAddress, misses: Int, _ page: DMAAddress? = nil) throws(Finding)
  {
    if !session.space.isBlank(old) {
      throw .broken("the device wrote to the old page, which the address leads to no more")
    }
    if let page, !session.context.device.writes, session.misses(on: page).count == misses {
      throw .broken("device address \(hex(page)) was used without another MISS: its old translation is still in use")
    }
  }

  private static func moved(_ context: CheckContext, _ setup: Setup) throws(Finding) -> String {
    let session = try context.session(setup)
    try session.batch(session.room)
    let pages = session.ringPages
    let all = Set((pages.descriptor + pages.driver + pages.device).map(\.rawValue)).sorted()
    // The driver is quiet, but the device may still write which notifications it wants: it has to release the pages
    // before their bytes are copied. Its questions meanwhile are answered afterwards.
    session.frontend.onMiss { _ in .hold }
    for page in all {
      session.space.hide(DMAAddress(page))
      try session.invalidate(DMAAddress(page))
    }
    var old: [GuestAddress] = []
    for page in all { old.append(try session.space.move(DMAAddress(page))) }
    for page in old { session.space.blank(page) }
    try session.ring.follow(session.space, session.frontend.features)
    session.frontend.onMiss { _ in .fromMappings }
    session.frontend.releaseHeldMisses()
    let count = try laps(session)
    for page in old {
      try expect(
        session.space.isBlank(page), "the device wrote to a page of the ring that the address leads to no more")
    }
    return "\(all.count) pages were led elsewhere, \(count) requests followed them"
  }
}
