internal import HostIO
internal import SocketMessages

/// VERSION: what either side can do. The client proposes, and the server answers with what it takes of that.
struct VersionRequest: Hashable, Sendable {
  var major: UInt16
  var minor: UInt16
  /// JSON, without the NUL that ends it.
  var text: String

  init(major: UInt16 = 0, minor: UInt16 = 0, text: String) {
    (self.major, self.minor, self.text) = (major, minor, text)
  }

  init(decoding payload: [UInt8]) throws(ProtocolError) {
    var reader = PayloadReader(payload, of: "VERSION")
    major = try reader.take(UInt16.self)
    minor = try reader.take(UInt16.self)
    let bytes = try reader.take(count: reader.remaining)
    guard bytes.isEmpty || bytes.last == 0 else { throw ProtocolError("VERSION", "its text does not end with a NUL") }
    text = String(decoding: bytes.dropLast(), as: UTF8.self)
  }

  /// A capability of the sender's that is a whole number; nil if it does not name it so. Its name appears nowhere else
  /// in the text.
  func number(_ capability: String) -> Int? {
    guard let name = text.firstRange(of: "\"\(capability)\"") else { return nil }
    let value = text[name.upperBound...].drop { $0.isWhitespace || $0 == ":" }
    return Int(value.prefix { $0.isASCII && $0.isNumber })
  }

  var encoded: [UInt8] {
    var writer = PayloadWriter()
    writer.put(major)
    writer.put(minor)
    writer.put(Array(text.utf8) + [0])
    return writer.bytes
  }

  /// What this server does: descriptors in a message, bytes of a transfer, mappings, and several writes in a message.
  /// All of it is the default or less, but for the last.
  static func answer(maxMappings: Int) -> VersionRequest {
    VersionRequest(
      text: """
        {"capabilities":{"max_msg_fds":16,"max_data_xfer_size":\(VfioHeader.transferLimit),\
        "max_dma_maps":\(maxMappings),"pgsizes":4096,"write_multiple":true}}
        """)
  }
}
