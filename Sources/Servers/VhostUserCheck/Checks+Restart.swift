internal import Examination
internal import HostIO
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio
internal import VirtioDrivers

extension Check {
  /// Where the life of a device, or of a queue, begins and goes on.
  static let lives: [Check] = [
    Check(
      "before-features", "SET_FEATURES", "No ring runs before features were accepted."
    ) { context throws(Finding) in
      let session = try Session(context, Setup(isUnaccepted: true))
      let said = try mustNotRun(session, "a request was served, and SET_FEATURES was never sent")
      session.frontend.close()
      try context.oneRequest(Setup())
      return said
    },
    Check(
      "after-reset", "RESET_DEVICE", "After RESET_DEVICE no ring runs before features were accepted again.",
      protocolFeatures: .resetDevice
    ) { context throws(Finding) in
      let session = try context.session(Setup(protocolFeatures: Frontend.usualProtocolFeatures.subtracting(.status)))
      try session.roundTrip()
      let frontend = session.frontend
      try judged { () throws(FrontendError) in try frontend.send(.resetDevice) }
      let said = try mustNotRun(session, "a request was served after RESET_DEVICE without another SET_FEATURES")
      if frontend.failure != nil { return said }
      _ = try? session.stop()
      try judged { () throws(FrontendError) in _ = try frontend.setFeatures(frontend.features) }
      try session.start()
      try session.roundTrip()
      return "\(said), and a request was served after features were accepted again"
    },
    Check(
      "second-life", "SET_OWNER",
      "A second SET_OWNER on a connection begins another life of the device: the same memory is taken again."
    ) { context throws(Finding) in try liveAgain(context, Setup()) },
    Check(
      "second-life-translated", "SET_OWNER",
      "The same with ACCESS_PLATFORM, and no translation outlives the life it was made in (R114).",
      features: .accessPlatform
    ) { context throws(Finding) in try liveAgain(context, .platform) },
    Check(
      "call-owed", "SET_VRING_CALL",
      "A call descriptor for a ring with used buffers that the driver has not looked at is signalled."
    ) { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      _ = session.ring.queue.armCall()
      try session.submit()
      try session.awaitUsedIndex(2)
      // The call for it was made, with the descriptor that is replaced now.
      session.settle()
      let call = try eventFD()
      let message = FrontendRequest.setVringCall(
        VringDescriptor(index: UInt8(context.device.queue), hasDescriptor: true))
      try judged { () throws(FrontendError) in try session.frontend.send(message, descriptors: [call.rawValue]) }
      guard (try? call.wait(timeout: context.patience)) == true else {
        throw .wedged(
          "a request was used, its driver may not have heard of it, and the new descriptor was not signalled")
      }
      try session.finish()
      return "the new descriptor was signalled"
    },
    Check(
      "call-taken-over", "SET_VRING_BASE",
      "A back-end that takes over a ring with used buffers calls: its predecessor may have ended before it did."
    ) { context throws(Finding) in
      for features in [[], Features.eventIndex] where context.offeredFeatures.isSuperset(of: features) {
        let session = try context.session(Setup(features: features))
        _ = session.ring.queue.armCall()
        try session.submit()
        try session.awaitUsedIndex(1)
        try session.reconnect()
        let here = QueueState(available: 1, used: nil)
        try session.resume(at: session.rings.map { $0.index == context.device.queue ? here : .initial })
        guard session.ring.events?.waitForCall(timeout: context.patience) == true else {
          throw .wedged(
            "a request was used before the ring was taken over, and no call came within \(seconds(context.patience))")
        }
        try session.finish()
        try session.roundTrip()
        session.frontend.close()
      }
      return "a call came, and the ring went on"
    },
  ]

  /// Sets the rings up and makes a request, which must not be served. Returns what was observed.
  private static func mustNotRun(_ session: Session, _ otherwise: String) throws(Finding) -> String {
    do throws(Finding) {
      try session.start()
      for ring in session.rings {
        try judged { () throws(FrontendError) in try session.frontend.enable(ring.index, true) }
      }
    } catch {
      guard error.verdict == .broken else { throw error }
      return "its rings were refused"
    }
    let before = session.ring.usedIndex(session.space)
    try session.submit()
    session.settle()
    try expect(session.ring.usedIndex(session.space) == before, otherwise)
    return session.frontend.failure == nil ? "nothing was served" : "it closed the connection"
  }

  /// What QEMU sends when a disk is pulled out, and another one is put in on the same socket.
  private static func liveAgain(_ context: CheckContext, _ setup: Setup) throws(Finding) -> String {
    let session = try context.session(setup)
    try session.roundTrip()
    for _ in 0..<2 {
      let frontend = session.frontend
      try judged { () throws(FrontendError) in
        if frontend.protocolFeatures.contains(.status) { try frontend.setStatus([]) }
        for ring in session.rings where frontend.features.contains(Frontend.protocolFeaturesBit) {
          try frontend.enable(ring.index, false)
        }
      }
      _ = try session.stop()
      let page = session.probedPage
      let misses = session.misses(on: page).count
      let old = try setup.translated ? session.space.move(page) : nil
      if let old { session.space.blank(old) }
      try session.beginAnew()
      try session.start()
      try session.submit()
      guard let used = try session.used() else { throw session.nothingCame() }
      if let old { try notStale(session, old, misses: misses, page) }
      if let fault = session.fault(used) { throw .broken(fault) }
    }
    return "a request was served in each of three lives on one connection"
  }
}
