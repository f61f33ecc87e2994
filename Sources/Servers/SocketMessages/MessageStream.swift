internal import DMA
package import HostIO

/// The fixed bytes in front of each message of a protocol.
package protocol FixedHeader: Sendable {
  /// Its bytes on the wire.
  static var byteCount: Int { get }
  /// Reads a header from ``byteCount`` bytes.
  init(decoding bytes: [UInt8]) throws(ProtocolError)
  /// Bytes that follow it: bounded, because room is made for them at once.
  var payloadByteCount: Int { get }
}

/// A message as it came: header, payload, and the descriptors beside it, which are closed with it unless they are
/// taken.
package struct IncomingMessage<Header: FixedHeader>: ~Copyable {
  package var header: Header
  package var payload: [UInt8]
  package var descriptors: FileDescriptorList

  package init(header: Header, payload: [UInt8], descriptors: consuming FileDescriptorList) {
    (self.header, self.payload) = (header, payload)
    self.descriptors = descriptors
  }
}

/// Why no more messages come.
package enum StreamEnding: Error {
  /// The peer closed, between two messages.
  case closed
  /// The peer closed within a message.
  case cut
  case host(HostError)
  case peer(ProtocolError)
}

/// Takes messages off a socket without waiting, in pieces of any size.
///
/// A header and its payload are received with separate calls, so that descriptors are never credited to the wrong
/// message: they travel with a message's first byte.
package struct MessageStream<Header: FixedHeader>: ~Copyable {
  /// A message has at most eight descriptors in vhost-user and sixteen in vfio-user; more than this many are an attack
  /// on our table of open files.
  private static var descriptorLimit: Int { 32 }

  package let socket: UnixSocket
  private var header: Header?
  private var bytes: [UInt8] = []
  private var filled = 0
  private var descriptors = FileDescriptorList()

  package init(_ socket: UnixSocket) {
    self.socket = socket
    bytes = [UInt8](repeating: 0, count: Header.byteCount)
  }

  /// The next message, or nil when it is not all here yet.
  package mutating func next() throws(StreamEnding) -> IncomingMessage<Header>? {
    while true {
      while filled < bytes.count {
        switch try receive() {
        case .nothingYet: return nil
        case .closed: throw header == nil && filled == 0 ? .closed : .cut
        case .bytes(let count): filled += count
        }
        guard descriptors.count <= Self.descriptorLimit else {
          throw .peer(
            ProtocolError("message", "\(descriptors.count) descriptors are more than \(Self.descriptorLimit)"))
        }
      }
      if let header { return finish(header) }
      let decoded = try rethrowing(Header(decoding: bytes), as: StreamEnding.peer)
      header = decoded
      bytes = [UInt8](repeating: 0, count: decoded.payloadByteCount)
      filled = 0
    }
  }

  private mutating func receive() throws(StreamEnding) -> UnixSocket.Received {
    var room: [UInt8] = []
    swap(&room, &bytes)
    defer { swap(&room, &bytes) }
    do throws(HostError) {
      var span = room.mutableSpan
      return try socket.receive(into: &span, at: filled, descriptors: &descriptors)
    } catch {
      // A peer that goes with bytes of ours unread resets the connection.
      if error.errno == .connectionReset { return .closed }
      throw .host(error)
    }
  }

  private mutating func finish(_ header: Header) -> IncomingMessage<Header> {
    let payload = bytes
    var taken = FileDescriptorList()
    while let one = descriptors.takeFirst() { taken.append(one) }
    self.header = nil
    bytes = [UInt8](repeating: 0, count: Header.byteCount)
    filled = 0
    return IncomingMessage(header: header, payload: payload, descriptors: taken)
  }
}
