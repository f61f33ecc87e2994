internal import DMA
internal import Examination
internal import HostIO
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio

extension Check {
  private typealias Kind = FrontendRequest.Kind

  /// A message that has to be refused, by an answer or by ending the connection.
  private static func refused(
    _ name: String, _ rule: String, _ sentence: String, _ kind: FrontendRequest.Kind, _ payload: [UInt8]
  ) -> Check {
    Check(name, rule, sentence) { context throws(Finding) in
      let connection = try context.negotiatedRaw()
      return try connection.mustRefuse(try connection.provoke(kind.rawValue, payload), "the message")
    }
  }

  /// A message that may be refused or not; the back-end has to live.
  private static func survived(
    _ name: String, _ rule: String, _ sentence: String, protocolFeatures: ProtocolFeatures = [],
    _ body: @escaping @Sendable (RawConnection) throws(Finding) -> Reaction
  ) -> Check {
    Check(name, rule, sentence, protocolFeatures: protocolFeatures) { context throws(Finding) in
      switch try body(try context.negotiatedRaw()) {
      case .closed: return "it closed the connection"
      case .silent: return "it went on as if nothing had come"
      case .answered(let bytes):
        return bytes.count == 8 ? "it answered, and goes on" : "it answered \(bytes.count) bytes, and goes on"
      }
    }
  }

  /// Messages that are broken, or make no sense.
  static let messages: [Check] = [
    Check("in-pieces", "header", "A message that comes byte by byte is understood.") { context throws(Finding) in
      let connection = try context.raw()
      for byte in FrontendRequest.getFeatures.encoded() {
        guard try connection.send([byte]) else { throw .broken("it closed the connection") }
        pause(.milliseconds(3))
      }
      guard try connection.isAnswered() else { throw .broken("it closed the connection") }
      return "GET_FEATURES in twelve pieces was answered"
    },
    Check("half-message", "header", "A connection that ends in the middle of a message does no harm.") {
      context throws(Finding) in
      let connection = try context.raw()
      _ = try connection.send([1, 0, 0, 0, 1, 0])
      connection.socket.shutdown()
      try context.session().roundTrip()
      return "the next front-end was served"
    },
    Check("unknown-request", "header", "An unknown request is refused.") { context throws(Finding) in
      let connection = try context.negotiatedRaw()
      return try connection.mustRefuse(try connection.provoke(200, []), "the message")
    },
    Check("too-large", "header", "A payload of 4 GiB is not waited for.") { context throws(Finding) in
      let connection = try context.negotiatedRaw()
      return try connection.mustRefuse(
        try connection.provoke(Kind.setOwner.rawValue, [], size: 0xffff_ffff), "the message")
    },
    survived("version", "header", "A message of another version does no harm.") { connection throws(Finding) in
      try connection.provoke(Kind.setOwner.rawValue, [], flags: 2 | MessageHeader.needReply)
    },
    survived("reply-flag", "header", "A request that says it is a reply does no harm.") { connection throws(Finding) in
      try connection.provoke(Kind.setOwner.rawValue, [], flags: MessageHeader.version | MessageHeader.reply)
    },
    refused("short-payload", "SET_FEATURES", "A payload that is too short is refused.", .setFeatures, [0, 0, 0, 0]),
    refused(
      "short-address", "SET_VRING_ADDR", "Half of a ring's addresses is refused.", .setVringAddress,
      [UInt8](repeating: 0, count: 20)),
    survived("many-descriptors", "header", "More descriptors than a message has do no harm.") {
      connection throws(Finding) in
      let file = try memoryFile(4096)
      return try connection.provoke(
        Kind.setOwner.rawValue, [], descriptors: [Int32](repeating: file.descriptor.rawValue, count: 64))
    },
    Check("no-descriptor", "SET_VRING_CALL", "A message whose descriptor is missing is refused.") {
      context throws(Finding) in
      let connection = try context.negotiatedRaw()
      let call = FrontendRequest.setVringCall(VringDescriptor(index: 0, hasDescriptor: true))
      return try connection.mustRefuse(try connection.provoke(call.kind.rawValue, call.payload), "the message")
    },
    Check("index-beyond", "vring index", "A queue just past the last one is refused.") { context throws(Finding) in
      try indexes(context, UInt32(max(context.device.queueLimit(context.queueCount), 1)))
    },
    Check(
      "index-far", "vring index", "A queue far past the last one is refused."
    ) { context throws(Finding) in try indexes(context, 0x7fff_fff0) },
    Check(
      "size-odd", "SET_VRING_NUM", "A ring of no descriptors, of 3 or of 65535 is refused or does no harm."
    ) { context throws(Finding) in
      var said: [String] = []
      for size in [0, 3, 65535] as [UInt16] {
        let session = try Session(context)
        var layout = session.ring.layout
        layout.size = size
        let odd = layout
        let refusal = try refusal { () throws(FrontendError) in
          let queue = try session.frontend.startQueue(context.device.queue, layout: odd)
          queue.kick()
        }
        pause(.milliseconds(10))
        let end = try givenUp(session)
        said.append("\(size): \(refusal ?? end ?? "taken")")
        session.frontend.close()
      }
      return said.joined(separator: ", ")
    },
    Check("ring-outside", "SET_VRING_ADDR", "A ring that lies in no memory is refused or does no harm.") {
      context throws(Finding) in
      let session = try Session(context)
      let queue = UInt32(context.device.queue)
      let said = try refusal { () throws(FrontendError) in
        try session.frontend.send(.setVringSize(VringState(index: queue, number: 64)))
        try session.frontend.send(
          .setVringAddress(
            VringAddress(
              index: queue, descriptorArea: 0x6600_0000_0000, driverArea: 0x6600_0000_1000, deviceArea: 0x6600_0000_2000
            )))
      }
      pause(.milliseconds(10))
      if let end = try givenUp(session) { return end }
      try session.start()
      try session.roundTrip()
      return "\(said ?? "it was taken"), and the ring worked when it was set up properly"
    },
    survived(
      "config-far", "GET_CONFIG", "A read past the end of the configuration space does no harm.",
      protocolFeatures: .configuration
    ) { connection throws(Finding) in
      let wanted = FrontendRequest.getConfiguration(
        ConfigurationBytes(offset: 0xffff_ff00, bytes: [UInt8](repeating: 0, count: 256)))
      return try connection.provoke(wanted.kind.rawValue, wanted.payload)
    },
    survived(
      "config-lies", "GET_CONFIG", "A configuration size that the payload contradicts does no harm.",
      protocolFeatures: .configuration
    ) { connection throws(Finding) in
      try connection.provoke(
        Kind.getConfiguration.rawValue,
        RawDescriptor.bytes(0, 4) + RawDescriptor.bytes(0xffff_fff0, 4) + RawDescriptor.bytes(0, 4) + [0, 0, 0, 0])
    },
    survived(
      "log-overflow", "SET_LOG_BASE", "A log whose size and offset overflow does no harm (R136).",
      protocolFeatures: .logSharedMemory
    ) { connection throws(Finding) in
      let file = try memoryFile(4096)
      let area = FrontendRequest.setLogBase(LogArea(size: .max, offset: 4096))
      return try connection.provoke(area.kind.rawValue, area.payload, descriptors: [file.descriptor.rawValue])
    },
    survived(
      "inflight-lies", "SET_INFLIGHT_FD", "In-flight memory that its file does not have does no harm.",
      protocolFeatures: .inflightSharedMemory
    ) { connection throws(Finding) in
      let file = try memoryFile(4096)
      let area = FrontendRequest.setInflightDescriptor(
        InflightDescription(mmapSize: 1 << 40, mmapOffset: 1 << 50, queueCount: 1, queueSize: 1024))
      return try connection.provoke(area.kind.rawValue, area.payload, descriptors: [file.descriptor.rawValue])
    },
    survived("iotlb-without-bit", "IOTLB_MSG", "A translation without ACCESS_PLATFORM does no harm.") {
      connection throws(Finding) in
      let message = FrontendRequest.iotlb(
        IOTLBMessage(kind: .update, address: 0, size: 4096, frontendAddress: 0, permission: .read))
      return try connection.provoke(message.kind.rawValue, message.payload)
    },
  ]

  /// How the connection ended, or nil if GET_FEATURES is answered on it.
  private static func givenUp(_ session: Session) throws(Finding) -> String? {
    try refusal { () throws(FrontendError) in _ = try session.frontend.ask(.getFeatures) }
  }

  static func memoryFile(_ size: UInt64) throws(Finding) -> MemoryFile {
    return try rethrowing(MemoryFile(name: "sluice-check", size: size), saying: Finding.notChecked)
  }

  private static func indexes(_ context: CheckContext, _ index: UInt32) throws(Finding) -> String {
    let state = VringState(index: index, number: 1)
    let all: [FrontendRequest] = [
      .setVringSize(VringState(index: index, number: 64)), .setVringBase(VringState(index: index, number: 0)),
      .setVringAddress(VringAddress(index: index, descriptorArea: 0, driverArea: 0, deviceArea: 0)),
      .setVringEnable(state), .getVringBase(state),
    ]
    for request in all {
      let connection = try context.negotiatedRaw()
      let reaction = try connection.provoke(request.kind.rawValue, request.payload)
      // Many back-ends serve one front-end at a time.
      connection.socket.shutdown()
      if case .answered(let bytes) = reaction, request == .getVringBase(state) {
        // Its own answer would be a state, which does not exist.
        let code = reaction.code ?? 0
        try expect(
          bytes.count != 8 || UInt32(truncatingIfNeeded: code) != index,
          "\(request.name) of queue \(index) was answered with a position")
        continue
      }
      _ = try connection.mustRefuse(reaction, "\(request.name) of queue \(index)")
    }
    return "\(all.count) messages about queue \(index) were refused"
  }
}
