internal import Examination
internal import SocketMessages
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio

extension Check {
  /// What is offered, agreed on and acknowledged.
  static let negotiation: [Check] = [
    Check("features-stable", "R017", "What is offered does not change between reads.") { context throws(Finding) in
      let frontend = try context.connect()
      return try judged { () throws(FrontendError) in
        let first = try frontend.ask(.getFeatures)
        var after = [try frontend.ask(.getFeatures)]
        try frontend.negotiate([.version1])
        after.append(try frontend.ask(.getFeatures))
        guard after.allSatisfy({ $0 == first }) else {
          throw .violation(
            ProtocolError(
              "GET_FEATURES", "\(hex(first)) at first, then \(after.map { hex($0) }.joined(separator: ", "))"))
        }
        return "\(hex(first)) three times, before and after SET_FEATURES"
      }
    },
    Check(
      "platform-channel", "R122", "ACCESS_PLATFORM is offered together with REPLY_ACK and BACKEND_REQ only.",
      features: .accessPlatform
    ) { context throws(Finding) in
      let missing = ProtocolFeatures([.replyAck, .backendRequests]).subtracting(context.offeredProtocol).names
      try expect(missing.isEmpty, "bit 33 is offered and \(missing.joined(separator: ", ")) is not")
      return "bit 33 comes with both"
    },
    Check("version-1", "GET_FEATURES", "A device of virtio 1 offers VERSION_1.") { context throws(Finding) in
      try expect(
        context.offeredFeatures.contains(.version1), "bit 32 is missing in \(hex(context.offeredFeatures.word))")
      return "\(hex(context.offeredFeatures.word)) has it"
    },
    Check("feature-not-offered", "R011", "A feature that was not offered is refused, or has no effect.") {
      context throws(Finding) in
      // The bit that would change the meaning of every address, if it is free to be tried.
      let bit =
        context.offeredFeatures.contains(.accessPlatform)
        ? (41...63).first { !context.offeredFeatures.contains(Features(bit: $0)) } : 33
      guard let bit else { throw .notOffered("every bit is offered") }
      let session = try Session(context)
      let word = session.frontend.features.union(Features(bit: bit)).word
      if let refusal = try refusal({ () throws(FrontendError) in try session.frontend.send(.setFeatures(word)) }) {
        return "bit \(bit): \(refusal)"
      }
      try session.start()
      try session.roundTrip()
      return "bit \(bit) was taken without complaint and changed nothing"
    },
    Check("features-again", "R016", "Features that were accepted once are accepted again.") { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      _ = try session.stop()
      try judged { () throws(FrontendError) in _ = try session.frontend.setFeatures(session.frontend.features) }
      try session.start()
      try session.roundTrip()
      session.frontend.close()
      try context.session().roundTrip()
      return "on the same connection and on the next one"
    },
    Check(
      "without-protocol-features", "SET_FEATURES",
      "Without VHOST_USER_F_PROTOCOL_FEATURES rings work without being enabled."
    ) { context throws(Finding) in
      let session = try Session(context, Setup(protocolFeatures: []))
      try judged { () throws(FrontendError) in _ = try session.frontend.setFeatures([.version1]) }
      try session.start()
      try session.roundTrip()
      return "a request was served, and SET_VRING_ENABLE was never sent"
    },
    Check(
      "features-forwarded", "SET_FEATURES",
      "Bits 24 and 27, which QEMU passes on from the driver though they were not offered, are taken."
    ) { context throws(Finding) in
      let session = try Session(context)
      let word = session.frontend.features.word | 1 << 24 | 1 << 27
      let said = try refusal { () throws(FrontendError) in try session.frontend.send(.setFeatures(word)) }
      if let said { throw .broken("\(said): QEMU then gives the device up") }
      try session.start()
      try session.roundTrip()
      return "they were taken, and a request was served"
    },
    Check(
      "ring-reset", "RING_RESET",
      "VIRTIO_F_RING_RESET is not offered for a device whose front-end has no message for it."
    ) { context throws(Finding) in
      let isOffered = context.offeredFeatures.contains(Features(bit: 40))
      // QEMU disables and stops a network device's ring; it disables no other device's.
      guard !context.device.ringsStopAlone else {
        return isOffered ? "offered: a network device's rings are disabled and stopped one by one" : "not offered"
      }
      try expect(!isOffered, "it is offered: a driver that resets a queue has a queue that is silent afterwards")
      return "not offered"
    },
    Check(
      "all-acknowledged", "REPLY_ACK", "Every request that asks for an acknowledgement gets one.",
      protocolFeatures: .replyAck
    ) { context throws(Finding) in
      let session = try context.session()
      try session.roundTrip()
      _ = try session.stop()
      return "every request of a session was acknowledged"
    },
    Check(
      "unacknowledged", "REPLY_ACK", "Requests that do not ask for an acknowledgement get none.",
      protocolFeatures: .replyAck
    ) { context throws(Finding) in
      let session = try Session(context)
      session.frontend.acknowledgeAll(false)
      try session.start()
      try session.roundTrip()
      try session.expectAnswer()
      return "a session without acknowledgements held no surprise"
    },
    Check(
      "queue-count", "GET_QUEUE_NUM", "As many queues are served as the device needs.", protocolFeatures: .multiqueue
    ) { context throws(Finding) in
      let count = context.device.queueLimit(context.queueCount)
      try expect(count >= context.device.queueCount, "\(count) queues are too few for a \(context.device) device")
      return "\(context.queueCount)"
    },
    Check(
      "configuration", "GET_CONFIG", "The configuration space can be read, and read again, whole and in parts.",
      protocolFeatures: .configuration
    ) { context throws(Finding) in
      let frontend = try context.connect()
      let count = context.device.configurationSize
      return try judged { () throws(FrontendError) in
        try frontend.negotiate([.version1])
        let whole = try frontend.readConfiguration(count: count)
        guard try frontend.readConfiguration(count: count) == whole else {
          throw .violation(ProtocolError("GET_CONFIG", "two reads differ"))
        }
        guard count >= 16 else { return "\(count) bytes, twice the same" }
        guard try frontend.readConfiguration(at: 8, count: 8) == Array(whole[8..<16]) else {
          throw .violation(ProtocolError("GET_CONFIG", "8 bytes from 8 on are not what the whole has there"))
        }
        return "\(count) bytes, twice the same, and the same from the middle"
      }
    },
  ]
}
