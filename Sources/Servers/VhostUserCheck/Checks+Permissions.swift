internal import DMA
internal import Examination
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio

extension Check {
  /// What a mapping allows, and what happens when it does not.
  static let permissions: [Check] = [
    Check(
      "read-only-ring", "R053", "A ring whose descriptors and driver area are mapped for reading only works.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try Session(context, .platform)
      for page in session.ringPages.descriptor + session.ringPages.driver { try session.space.permit(page, .read) }
      return try serves(session)
    },
    Check(
      "write-only-used", "R054", "A ring whose device area is mapped for writing only works.", features: .accessPlatform
    ) { context throws(Finding) in
      let session = try Session(context, .platform)
      for page in session.ringPages.device { try session.space.permit(page, .write) }
      return try serves(session)
    },
    Check(
      "least-permissions", "R118", "Buffers that are mapped for what is done with them and nothing more are served.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try Session(context, .platform)
      let readable = context.device.request.readable.count
      for (i, page) in session.pieces.enumerated() { try session.space.permit(page, i < readable ? .read : .write) }
      return try serves(session)
    },
    Check(
      "read-only-page", "R084", "A page that is mapped for reading is not written.", features: .accessPlatform,
      needsWrites: true
    ) { context throws(Finding) in
      let session = try Session(context, .platform)
      try session.space.permit(session.landing, .read)
      return try refusesToWrite(session, "it was asked for with write permission, and refused")
    },
    Check(
      "read-only-entry", "R118", "A translation for reading that is known does not serve a write.",
      features: .accessPlatform, needsWrites: true
    ) { context throws(Finding) in
      let session = try Session(context, .platform)
      try session.space.permit(session.landing, .read)
      let message = try session.update(session.landing, .read)
      try session.translate(message)
      return try refusesToWrite(session, "the page was known for reading, and not written")
    },
    Check(
      "upgrade", "R118", "A page that was known for reading is asked for again when it is to be written.",
      features: .accessPlatform, needsWrites: true
    ) { context throws(Finding) in
      let session = try Session(context, .platform)
      try session.translate(try session.update(session.landing, .read))
      try session.start()
      try session.roundTrip()
      return "the mapping allowed writing, the first translation did not, and the request was served"
    },
    Check(
      "write-only-page", "R083", "A page that is mapped for writing is not read.", features: .accessPlatform
    ) { context throws(Finding) in
      guard !context.device.request.readable.isEmpty else {
        throw .notOffered("a \(context.device) device reads no buffers")
      }
      let session = try Session(context, .platform)
      try session.space.permit(session.first, .write)
      try session.start()
      try session.submit()
      let used = try unharmed(session)
      if let used, context.device.writes { try expect(session.fault(used) != nil, "the request was served") }
      try recover(session)
      return used == nil ? "the request came to nothing, the back-end lives" : "the request was used, and not served"
    },
    Check(
      "miss-refused", "R105", "A miss that is refused stops neither the back-end nor, once set up again, the ring.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      try loseFirst(session)
      let used = try unharmed(session)
      if let used {
        try expect(
          !context.device.writes || session.fault(used) != nil, "the request was served although nothing is mapped")
      }
      let asked = session.misses(on: session.first).count
      try recover(session)
      return "asked for \(asked) times, answered with a failure, and the ring worked after it was set up again"
    },
    Check(
      "miss-unanswered", "R105",
      "A miss that is never answered stops neither messages nor, once set up again, the ring (R064).",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      let page = session.first.rawValue
      session.frontend.onMiss { $0.address & ~4095 == page ? .silence : .fromMappings }
      let before = session.misses(on: session.first).count
      try loseFirst(session)
      // Before it has asked there is nothing that it could wait for, and it would answer as any back-end does.
      try session.awaitMiss(on: session.first, past: before, "the buffer of a request was not asked for again")
      _ = try unharmed(session)
      try recover(session)
      return "GET_FEATURES and GET_VRING_BASE were answered meanwhile, and the ring worked after it was set up again"
    },
    Check(
      "empty-success", "R105", "A miss that is acknowledged without any translation is survived.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      let page = session.first.rawValue
      session.frontend.onMiss { $0.address & ~4095 == page ? .emptySuccess : .fromMappings }
      try loseFirst(session)
      _ = try unharmed(session)
      let count = session.misses(on: session.first).count
      try expect(count < 1000, "it asked \(count) times in \(seconds(context.quiet))")
      session.frontend.onMiss { _ in .fromMappings }
      try recover(session)
      return "asked for \(count) times, and the ring worked after it was set up again"
    },
    Check(
      "ring-unmapped", "R041",
      "A ring that is not mapped does no harm, and works when it is mapped and set up again (R042).",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try Session(context, Setup(translated: true, scattered: true))
      // The second page of each area: a look at the first byte alone does not find it.
      let holes = [session.ringPages.descriptor, session.ringPages.driver, session.ringPages.device].compactMap {
        $0.count > 1 ? $0.last : nil
      }
      for page in holes { session.space.hide(page) }
      try session.start()
      try session.submit()
      let used = try unharmed(session)
      try expect(used == nil || holes.isEmpty, "a request was served although the ring's second pages are not mapped")
      for page in holes { try session.space.map(page, to: session.space.guest(page)) }
      try recover(session)
      return "nothing happened with \(holes.count) of its pages missing; then it worked"
    },
    Check(
      "late-answer", "R064", "The answer to a miss that comes after the ring was stopped does not start it.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      try session.roundTrip()
      try holdFirst(session)
      let states = try session.stop()
      session.frontend.releaseHeldMisses()
      try session.expectNothing("a request was served on a ring that had been stopped")
      session.frontend.onMiss { _ in .fromMappings }
      try session.resume(at: states)
      session.ring.events?.kick()
      try session.finish()
      return "nothing happened until the ring was started again"
    },
    Check(
      "zero-length", "R055", "For a descriptor of no bytes nothing is asked for.", features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(.platform)
      let page = DMAAddress(0x2_0000_0000)
      session.offer([RawDescriptor(page.rawValue, 0, context.device.request.readable.isEmpty ? .write : [])])
      session.settle()
      let count = session.misses(on: page).count
      try session.expectAnswer()
      try expect(count == 0, "\(count) misses came for its address")
      try recover(session)
      return "no miss, and the ring worked after it was set up again"
    },
  ]

  private static func serves(_ session: Session) throws(Finding) -> String {
    try session.start()
    for _ in 0..<3 { try session.roundTrip() }
    return "three requests were served"
  }

  /// Takes the page of a request's first buffer away, and asks for the request all the same.
  private static func loseFirst(_ session: Session) throws(Finding) {
    session.space.hide(session.first)
    try session.invalidate(session.first)
    try session.submit()
  }

  private static func refusesToWrite(_ session: Session, _ evidence: String) throws(Finding) -> String {
    try session.start()
    let page = session.space.guest(session.landing)
    try session.submit()
    _ = try unharmed(session)
    try expect(session.space.isBlank(page, count: session.landingCount), "the page was written")
    try recover(session)
    return evidence
  }
}
