internal import Examination

extension Check {
  /// The first message of a connection.
  static let version: [Check] = [
    Check("version", "VERSION", "The reply has the same major version, no later minor one, and capabilities in JSON.") {
      context throws(Finding) in
      _ = try context.connection()
      let offer = context.offer
      try expect(offer.major == 0 && offer.minor == 0, "0.0 was proposed, and \(offer.major).\(offer.minor) answered")
      if !offer.text.isEmpty {
        guard case .object? = JSONValue(offer.text) else { throw .broken("its text is no JSON object: \(offer.text)") }
      }
      return offer.text.isEmpty ? "0.0, without a text" : offer.text
    },
    Check("version-bare", "VERSION", "The text of VERSION is optional.") { context throws(Finding) in
      try agreed(context, Wire.version(0, 0, nil))
      return "the next command was answered"
    },
    Check("version-unknown-keys", "VERSION", "Capabilities that a server does not know are no reason to refuse.") {
      context throws(Finding) in
      try agreed(
        context,
        Wire.version(
          0, 0, #"{"capabilities":{"max_msg_fds":16,"some_day":[1,{"a":null,"b":"\"}"}],"x":-1.5e3},"more":true}"#))
      return "the next command was answered"
    },
    Check("version-odd-text", "VERSION", "A text that is no JSON, or does not end, is refused or does no harm.") {
      context throws(Finding) in
      var said: [String] = []
      let texts: [[UInt8]] = [
        Array(#"{"capabilities":"#.utf8) + [0], Array("[[[[[[[[".utf8) + [0], Array(#"{"a":1}"#.utf8), [0xff, 0xfe, 0],
        Array(String(repeating: "[", count: 3000).utf8) + [0],
        Array(#"{"capabilities":{"max_msg_fds":-1,"max_data_xfer_size":1e99,"pgsizes":"x"}}"#.utf8) + [0],
      ]
      for text in texts {
        let connection = try context.raw()
        said.append(try connection.survived(try connection.provoke(.version, Wire.version(0, 0, nil) + text)))
        connection.close()
      }
      return Set(said).sorted().joined(separator: "; ")
    },
    Check("version-major", "VERSION", "Another major version is not agreed to.") { context throws(Finding) in
      let connection = try context.raw()
      switch try connection.provoke(.version, Wire.version(7, 0, "{}")) {
      case .closed: return "it closed the connection"
      case .refused(let error): return "it was refused: \(error)"
      case .answered(let payload):
        // A server may say which version it speaks, and leave it to the client to go.
        let major = Wire.number(payload, 0, UInt16.self)
        try expect(major != 7, "it answered that it speaks version 7")
        return "it answered that it speaks version \(major)"
      }
    },
    Check("version-minor", "VERSION", "A later minor version is answered with one that the server speaks.") {
      context throws(Finding) in
      let connection = try context.raw()
      guard case .answered(let payload) = try connection.provoke(.version, Wire.version(0, 0x7fff, "{}")) else {
        throw .broken("version 0.32767 was refused: a client that can do more may not connect")
      }
      let (major, minor) = (Wire.number(payload, 0, UInt16.self), Wire.number(payload, 2, UInt16.self))
      try expect(major == 0 && minor < 0x7fff, "it answered \(major).\(minor)")
      return "it answered \(major).\(minor)"
    },
    Check("version-short", "VERSION", "A VERSION without version numbers is refused.") { context throws(Finding) in
      let connection = try context.raw()
      return try connection.refused(try connection.provoke(.version, [0]), "VERSION with a payload of one byte")
    },
    Check("version-first", "VERSION", "Before VERSION no command is done.") { context throws(Finding) in
      let connection = try context.raw()
      let reaction = try connection.provoke(.getInfo, Wire.words(16, 0, 0, 0))
      if case .answered = reaction { throw .broken("DEVICE_GET_INFO was answered before VERSION") }
      connection.close()
      // Nor one that wants no reply.
      let other = try context.raw()
      let memory = other.memory.descriptor
      _ = try other.post(
        Command.mapDMA.rawValue, Wire.map(ClientMemory.base, 4096), flags: Header.noReply, descriptors: [memory])
      let late = try other.provoke(.getInfo, Wire.words(16, 0, 0, 0))
      if case .answered = late { throw .broken("DEVICE_GET_INFO was answered before VERSION") }
      return reaction == .closed ? "it closed the connection" : "it was refused"
    },
    Check("version-twice", "VERSION", "A second VERSION is refused or does no harm.") { context throws(Finding) in
      let connection = try context.connection()
      return try connection.survived(try connection.provoke(.version, Wire.proposal))
    },
  ]

  private static func agreed(_ context: CheckContext, _ payload: [UInt8]) throws(Finding) {
    let connection = try context.raw()
    switch try connection.provoke(.version, payload) {
    case .answered: break
    case .refused(let error): throw .broken("it was refused: \(error)")
    case .closed: throw .broken("it closed the connection")
    }
    try expect(try connection.isAnswering(), "it closed the connection at the next command")
  }
}
