public import SocketMessages

/// The twelve bytes in front of every message: request, flags, payload size, in the machine's byte order.
public struct MessageHeader: Hashable, FixedHeader {
  /// The request number; which table it is looked up in depends on the socket.
  public var request: UInt32
  /// Version (low two bits), `reply` and `needReply`.
  public var flags: UInt32
  /// Payload bytes that follow.
  public var size: UInt32

  /// Bytes of a header on the wire.
  public static let byteCount = 12
  /// The only version there is.
  public static let version: UInt32 = 1
  /// Bit 2: this is an answer.
  public static let reply: UInt32 = 1 << 2
  /// Bit 3: the sender wants an acknowledgement.
  public static let needReply: UInt32 = 1 << 3
  /// The longest payload either end accepts. The longest one defined is GET_SHMEM_CONFIG's answer, 2056 bytes.
  public static let payloadLimit: UInt32 = 4096

  /// A header with the given fields; `flags` includes the version.
  public init(request: UInt32, flags: UInt32, size: UInt32) {
    self.request = request
    self.flags = flags
    self.size = size
  }

  /// True if this is an answer.
  public var isReply: Bool { flags & Self.reply != 0 }
  /// True if the sender waits for an answer.
  public var needsReply: Bool { flags & Self.needReply != 0 }

  /// Reads a header.
  ///
  /// `bytes` must hold twelve bytes. Throws if the version is not 1 or the payload is longer than ``payloadLimit``.
  public init(decoding bytes: [UInt8]) throws(ProtocolError) {
    var reader = PayloadReader(bytes, of: "header")
    request = try reader.take(UInt32.self)
    flags = try reader.take(UInt32.self)
    size = try reader.take(UInt32.self)
    try reader.finish()
    guard flags & 3 == Self.version else {
      throw ProtocolError("header", "version \(flags & 3) of request \(request) is not \(Self.version)")
    }
    guard size <= Self.payloadLimit else {
      throw ProtocolError(
        "header", "a payload of \(size) bytes for request \(request) is more than \(Self.payloadLimit)")
    }
  }

  /// The header's bytes.
  public var encoded: [UInt8] {
    var writer = PayloadWriter()
    writer.put(request)
    writer.put(flags)
    writer.put(size)
    return writer.bytes
  }
}

extension MessageHeader {
  package var payloadByteCount: Int { Int(size) }

  /// A whole message: header and payload.
  package static func frame(request: UInt32, flags: UInt32, payload: [UInt8]) -> [UInt8] {
    MessageHeader(request: request, flags: version | flags, size: UInt32(truncatingIfNeeded: payload.count)).encoded
      + payload
  }

  /// Makes the message whose header is at `place` ask for an answer.
  package static func askForReply(_ bytes: inout [UInt8], at place: Int) {
    // `flags` is the second word; its lowest byte is where the machine puts it.
    bytes[place + 4 + (machineIsBigEndian ? 3 : 0)] |= UInt8(needReply)
  }
}
