internal import DMA
internal import Examination
internal import HostIO
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio
internal import VirtioDrivers

extension Check {
  /// What ends with a stop, a reset or another negotiation, and what does not.
  static let lifetime: [Check] = [
    Check(
      "features-while-running", "SET_FEATURES", "The same features once more, under a running ring, leave it running."
    ) { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      try judged { () throws(FrontendError) in _ = try session.frontend.setFeatures(session.frontend.features) }
      try session.roundTrip()
      return "a request was served before and after"
    },
    Check(
      "features-dropped", "R014",
      "Features without ACCESS_PLATFORM, under a running ring, do not change what its addresses mean.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(Setup(translated: true, identity: true))
      try session.roundTrip()
      let before = try leadElsewhere(session)
      try session.invalidate(session.probed)
      try session.roundTrip()
      let word = session.frontend.features.subtracting(.accessPlatform).word
      let said = try refusal { () throws(FrontendError) in try session.frontend.send(.setFeatures(word)) }
      if let said, session.frontend.failure != nil { return said }
      session.space.blank(before)
      try session.submit()
      guard let used = try session.used() else { throw session.nothingCame() }
      try expect(
        session.space.isBlank(before),
        "the answer landed at the guest address that equals the device address: it was translated no more")
      if let fault = session.fault(used) { throw .broken(fault) }
      return "\(said ?? "it was taken"), and the next request's addresses were translated as before"
    },
    Check(
      "renegotiated", "R065",
      "The bit can be given up and taken again on one connection, and no translation outlives it (R015).",
      features: .accessPlatform
    ) { context throws(Finding) in
      let session = try context.session(Setup(translated: true, identity: true))
      try session.roundTrip()
      let here = GuestAddress(session.probed.rawValue)
      _ = try leadElsewhere(session)
      let elsewhere = session.space.guest(session.probed)
      try session.invalidate(session.probed)
      try session.roundTrip()
      let platform = session.frontend.features
      if let said = try agree(session, platform.subtracting(.accessPlatform)) {
        return "without the bit it will not work: \(said)"
      }
      // From now on addresses are guest addresses.
      session.space.hide(session.probed)
      try session.space.map(session.probed, to: here)
      session.space.blank(elsewhere)
      // Questions of rings that have stopped may still be on their way.
      session.settle()
      let misses = session.frontend.counts.misses
      try session.start()
      try session.submit()
      guard let used = try session.used() else { throw session.nothingCame() }
      try expect(
        session.space.isBlank(elsewhere),
        "without the bit the answer landed where a translation led that was made with it")
      if let fault = session.fault(used) { throw .broken(fault) }
      let more = session.frontend.counts.misses - misses
      try expect(more == 0, "without the bit it asked for \(more) translations")
      if let said = try agree(session, platform) {
        throw .broken("the bit was accepted at first, and the second time \(said)")
      }
      try session.start()
      try session.roundTrip()
      try expect(
        session.frontend.counts.misses > misses, "with the bit again it asked for nothing: it remembered translations")
      return "served with the bit, without it and with it, and asked anew in the end"
    },
    Check(
      "elsewhere", "R062", "A ring that was stopped can be set up at other addresses, and the old ones are left alone."
    ) { context throws(Finding) in
      try elsewhere(context, Setup())
    },
    Check(
      "elsewhere-translated", "R062", "The same with ACCESS_PLATFORM.", features: .accessPlatform
    ) { context throws(Finding) in try elsewhere(context, .platform) },
    Check(
      "stop-in-flight", "R060",
      "Once GET_VRING_BASE is answered no request that was under way writes to memory any more."
    ) { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      let count = min(8, session.room)
      for _ in 0..<8 {
        for _ in 0..<count { try session.add() }
        session.publish()
        let states = try session.stop()
        let page = session.space.guest(session.probed)
        if context.device.writes { session.space.blank(page) }
        let index = session.ring.usedIndex(session.space)
        session.settle()
        try expect(
          session.ring.usedIndex(session.space) == index, "the used index moved after GET_VRING_BASE was answered")
        if context.device.writes {
          try expect(session.space.isBlank(page), "a buffer was written after GET_VRING_BASE was answered")
        }
        try session.resume(at: states)
        session.ring.events?.kick()
        for left in (1...count).reversed() {
          guard try session.used() != nil else { throw .broken("\(left) of \(count) requests were lost with the stop") }
        }
      }
      try session.roundTrip()
      return "eight times \(count) requests under way: nothing was written late, none was lost"
    },
    Check(
      "call-replaced", "SET_VRING_CALL",
      "A running ring takes another call descriptor: QEMU sends one whenever an interrupt is masked."
    ) { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      let call = try eventFD()
      let message = FrontendRequest.setVringCall(
        VringDescriptor(index: UInt8(context.device.queue), hasDescriptor: true))
      try judged { () throws(FrontendError) in try session.frontend.send(message, descriptors: [call.rawValue]) }
      // Some signal it at once, in case a call was missed.
      session.settle()
      _ = try? call.drain()
      _ = session.ring.queue.armCall()
      try session.submit()
      guard (try? call.wait(timeout: context.patience)) == true else {
        throw .wedged("the new descriptor was not signalled within \(seconds(context.patience)) of a request")
      }
      try session.finish()
      return "the new descriptor was signalled"
    },
    Check(
      "kick-early", "SET_VRING_KICK",
      "A kick descriptor that is readable when it is passed starts the ring: what is available already is served."
    ) { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      let states = try session.stop()
      try session.add()
      _ = session.ring.queue.publish()
      // Stopped but enabled, so that nothing else has to come before it is served.
      try session.resume(at: states, kicked: true)
      try session.finish()
      try session.roundTrip()
      return "a request that was kicked before was served, and one after"
    },
    Check(
      "reset-owner", "RESET_OWNER",
      "RESET_OWNER, which is deprecated and understood in several ways, does no harm beyond its connection."
    ) { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      if let said = try refusal({ () throws(FrontendError) in try session.frontend.send(.resetOwner) }),
        session.frontend.failure != nil
      {
        return said
      }
      do throws(Finding) {
        try session.startOver()
        try session.roundTrip()
        return "the ring was set up again without another SET_FEATURES or memory table, and served"
      } catch {
        session.frontend.close()
        try context.oneRequest(Setup())
        return "it discarded what was negotiated (\(error.evidence)), and served the next connection"
      }
    },
    Check(
      "status-read", "R007", "The device status reads back as it was set, FEATURES_OK included.",
      protocolFeatures: .status
    ) { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      let wanted: DeviceStatus = [.acknowledge, .driver, .featuresOK, .driverOK]
      let status = try judged { () throws(FrontendError) in try session.frontend.status() }
      try expect(status.isSuperset(of: wanted), "\(wanted.rawValue) was set and \(status.rawValue) is read")
      return "\(status.rawValue), as it was set"
    },
    Check(
      "in-band", "INBAND_NOTIFICATIONS", "Kicks and calls can be messages.",
      protocolFeatures: [.inbandNotifications, .backendRequests, .replyAck]
    ) { context throws(Finding) in
      let session = try context.session(
        Setup(protocolFeatures: Frontend.usualProtocolFeatures.union(.inbandNotifications)))
      for _ in 0..<3 { try session.roundTrip() }
      try called(session)
      return "four requests were served, and a call came as a message"
    },
    Check(
      "guest-addresses", "GPA_ADDRESSES", "With GPA_ADDRESSES the addresses of regions and rings are guest addresses.",
      protocolFeatures: .guestAddresses
    ) { context throws(Finding) in
      let features = Frontend.usualProtocolFeatures.union(.guestAddresses)
      try context.oneRequest(Setup(protocolFeatures: features))
      guard context.offeredFeatures.contains(.accessPlatform) else { return "a request was served" }
      try context.oneRequest(Setup(protocolFeatures: features, translated: true))
      return "a request was served, and one behind an IOMMU"
    },
  ]

  /// Leads the page of the answer elsewhere, for both ends. Returns the guest page that its device address is the
  /// address of.
  private static func leadElsewhere(_ session: Session) throws(Finding) -> GuestAddress {
    let before = GuestAddress(session.probedPage.rawValue)
    session.space.hide(session.probed)
    try session.space.map(session.probed, to: session.space.guestPage())
    return before
  }

  /// Stops the rings and negotiates other features. How that was refused, or nil.
  private static func agree(_ session: Session, _ features: Features) throws(Finding) -> String? {
    _ = try session.stop()
    let frontend = session.frontend
    return try refusal { () throws(FrontendError) in
      try restartStatus(frontend, features)
    }
  }

  private static func elsewhere(_ context: CheckContext, _ setup: Setup) throws(Finding) -> String {
    let session = try context.session(setup)
    for _ in 0..<3 { try session.roundTrip() }
    _ = try session.stop()
    let old = (session.ringPages.descriptor + session.ringPages.driver + session.ringPages.device).map {
      session.space.guest($0)
    }
    try session.layOut()
    for page in old { session.space.blank(page) }
    try session.start()
    for _ in 0..<3 { try session.roundTrip() }
    for page in old { try expect(session.space.isBlank(page), "a page of the old ring was written") }
    return "three requests before and three after, and the old ring's pages stayed as they were"
  }

  static func eventFD() throws(Finding) -> EventFD {
    return try rethrowing(EventFD(), saying: Finding.notChecked)
  }

  /// Throws unless a request that asks for a call gets one.
  static func called(_ session: Session) throws(Finding) {
    _ = session.ring.events?.waitForCall(timeout: .zero)
    _ = session.ring.queue.armCall()
    try session.submit()
    guard session.ring.events?.waitForCall(timeout: session.context.patience) == true else {
      if try session.used(within: .zero) == nil { throw session.nothingCame() }
      throw .wedged("the request was served, and no call came within \(seconds(session.context.patience))")
    }
    try session.finish()
  }
}
