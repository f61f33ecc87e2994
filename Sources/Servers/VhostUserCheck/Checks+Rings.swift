internal import Examination
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio

extension Check {
  private static func one(
    _ features: Features, indirect: Bool = false
  ) -> @Sendable (CheckContext) throws(Finding) -> String {
    { context throws(Finding) in
      let session = try context.session(Setup(features: features))
      for _ in 0..<3 { try session.roundTrip(indirect: indirect) }
      return "three requests were served"
    }
  }

  /// Requests over rings of every kind.
  static let rings: [Check] = [
    Check("split", "split", "A request over a split ring is served.", one([])),
    Check(
      "indirect", "INDIRECT_DESC", "A request in an indirect table is served.", features: .indirectDescriptors,
      one(.indirectDescriptors, indirect: true)),
    Check(
      "event-index", "EVENT_IDX", "With event indexes requests are served and calls come.", features: .eventIndex
    ) { context throws(Finding) in
      let session = try context.session(Setup(features: .eventIndex))
      for _ in 0..<3 { try session.roundTrip() }
      try called(session)
      return "four requests were served, and a call came when it was asked for"
    },
    Check("packed", "RING_PACKED", "A request over a packed ring is served.", features: .ringPacked, one(.ringPacked)),
    Check(
      "packed-indirect", "RING_PACKED", "A packed ring with indirect tables and event indexes serves.",
      features: [.ringPacked, .indirectDescriptors, .eventIndex],
      one([.ringPacked, .indirectDescriptors, .eventIndex], indirect: true)),
    Check(
      "in-order", "IN_ORDER", "With IN_ORDER requests are used in the order they were made available.",
      features: .inOrder
    ) { context throws(Finding) in
      let session = try context.session(Setup(features: .inOrder))
      for _ in 0..<4 { try session.add() }
      session.publish()
      for _ in 0..<4 { try session.finish() }
      // An entry for the last of them stands for all; later entries must not be about one of them.
      try session.roundTrip()
      return "four requests at once came back in order, and a fifth"
    },
    Check("call", "SET_VRING_CALL", "The driver is called when it asked for it.") { context throws(Finding) in
      try called(try context.session())
      return "a call came"
    },
    Check("lap", "split", "A ring goes on after its end.") { context throws(Finding) in try lap(context, []) },
    Check("lap-packed", "RING_PACKED", "A packed ring goes on after its end.", features: .ringPacked) {
      context throws(Finding) in
      try lap(context, .ringPacked)
    },
    Check("many", "split", "A full ring is served.") { context throws(Finding) in
      let session = try context.session(Setup(size: 32))
      for _ in 0..<3 { try session.batch(session.room) }
      return "three times \(session.room) requests that fill the ring were served"
    },
    Check("polling", "SET_VRING_KICK", "A ring without a kick is polled.") { context throws(Finding) in
      let session = try Session(context, Setup(polled: true))
      try session.start()
      try session.roundTrip()
      return "a request was found without a kick"
    },
  ]

  private static func lap(_ context: CheckContext, _ features: Features) throws(Finding) -> String {
    let session = try context.session(Setup(features: features, size: 16))
    for _ in 0..<5 { try session.roundTrip() }
    return "\(5 + (try laps(session))) requests over a ring of 16"
  }

  /// Rings that stop and go on.
  static let stopping: [Check] = [
    Check("position", "GET_VRING_BASE", "A stopped ring tells how far it came, and goes on from there.") {
      context throws(Finding) in
      let session = try context.session()
      for _ in 0..<3 { try session.roundTrip() }
      let states = try session.stop()
      let position = states[context.device.queue].available
      try expect(position == 3, "after 3 requests the position is \(position)")
      try session.resume(at: states)
      try session.roundTrip()
      return "3 after 3 requests, and a fourth was served after the stop"
    },
    Check(
      "position-packed", "GET_VRING_BASE", "A stopped packed ring tells how far it came, wrap counter and all.",
      features: .ringPacked
    ) { context throws(Finding) in
      let session = try context.session(Setup(features: .ringPacked, size: 16))
      let pieces = session.pieces.count
      // Past the end of the ring, so that the wrap counter has changed.
      let count = 16 / pieces + 2
      for _ in 0..<count { try session.roundTrip() }
      let states = try session.stop()
      let state = states[context.device.queue]
      let slots = count * pieces
      let isRight =
        Int(state.available) == slots % 16 && state.availableWrap == (slots / 16 % 2 == 0)
        && state.used == state.available
      try expect(
        isRight,
        "after \(slots) slots of 16: slot \(state.available), wrap \(state.availableWrap), used \(state.used ?? 0)")
      try session.resume(at: states)
      try session.roundTrip()
      return "slot \(state.available) after \(slots) slots, and the ring went on"
    },
    Check("stopped", "GET_VRING_BASE", "A stopped ring is left alone.") { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      let states = try session.stop()
      try session.submit()
      try session.expectNothing("a request was served on a ring that had been stopped")
      try session.resume(at: states)
      // The kick of before may have gone to an eventfd that is no longer there.
      session.ring.events?.kick()
      try session.finish()
      return "a request waited until the ring was started again"
    },
    Check(
      "disabled", "SET_VRING_ENABLE", "A disabled ring has no effects, and goes on when it is enabled.",
      features: Frontend.protocolFeaturesBit
    ) { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      let queue = context.device.queue
      try judged { () throws(FrontendError) in try session.frontend.enable(queue, false) }
      // Network devices consume what is sent on a disabled ring (the document says so); others leave it.
      if !context.device.ringsStopAlone {
        try session.submit()
        try session.expectNothing("a request was served on a disabled ring")
      }
      try judged { () throws(FrontendError) in try session.frontend.enable(queue, true) }
      if context.device.ringsStopAlone { try session.submit() } else { session.ring.events?.kick() }
      try session.finish()
      return "a request was served after the ring was enabled again"
    },
    Check("stop-start", "GET_VRING_BASE", "A ring can be stopped and set up anew, many times.") {
      context throws(Finding) in
      let session = try context.session()
      for _ in 0..<8 {
        try session.roundTrip()
        try session.startOver()
      }
      try session.roundTrip()
      return "eight times"
    },
    Check(
      "reset-device", "RESET_DEVICE", "After a reset the device can be set up again.", protocolFeatures: .resetDevice
    ) { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      let frontend = session.frontend
      let features = frontend.features
      try judged { () throws(FrontendError) in
        try frontend.send(.resetDevice)
        _ = try frontend.setFeatures(features)
      }
      try session.start()
      try session.roundTrip()
      return "a request was served afterwards"
    },
    Check(
      "status-reset", "SET_STATUS", "A status of 0 resets the device, which can be set up again (R060).",
      protocolFeatures: .status
    ) { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      let frontend = session.frontend
      try judged { () throws(FrontendError) in try frontend.setStatus([]) }
      try session.submit()
      try session.expectNothing("a request was served after the reset")
      _ = try session.stop()
      try judged { () throws(FrontendError) in
        try frontend.setStatus([.acknowledge, .driver, .featuresOK])
        _ = try frontend.setFeatures(frontend.features)
      }
      try session.start()
      try session.roundTrip()
      return "nothing was served between reset and set-up, and a request after it"
    },
    Check(
      "drop", "connection",
      "A front-end that goes in the middle of requests leaves a back-end that serves the next one."
    ) { context throws(Finding) in
      let session = try context.session()
      for _ in 0..<8 { try session.add() }
      session.publish()
      session.frontend.close()
      try context.session().roundTrip()
      return "the next front-end was served"
    },
    Check(
      "never-started", "GET_VRING_BASE", "A queue that never ran can be stopped, or that is refused."
    ) { context throws(Finding) in
      let session = try Session(context)
      let said = try refusal { () throws(FrontendError) in _ = try session.frontend.stopQueue(context.device.queue) }
      if session.frontend.failure == nil { try session.expectAnswer() }
      return said ?? "it was answered"
    },
  ]
}
