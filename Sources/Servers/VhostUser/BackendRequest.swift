public import SocketMessages

/// A request of the back-end, on the socket that SET_BACKEND_REQ_FD brought.
///
/// The front-end's answer, if one is asked for, is a word: 0 is success.
public enum BackendRequest: Hashable, Sendable {
  /// A miss, or an access that could not be made.
  case iotlb(IOTLBMessage)
  /// The configuration space changed (§2.5).
  case configurationChange
  /// In-band notification: a virtqueue has used buffers.
  case vringCall(VringState)
  /// In-band notification: a virtqueue is broken.
  case vringError(VringState)

  /// The requests this code speaks, by number.
  public enum Kind: UInt32, CaseIterable, Sendable {
    /// BACKEND_IOTLB_MSG.
    case iotlb = 1
    /// BACKEND_CONFIG_CHANGE_MSG.
    case configurationChange = 2
    /// BACKEND_VRING_CALL.
    case vringCall = 4
    /// BACKEND_VRING_ERR.
    case vringError = 5
  }

  /// The request's number.
  public var kind: Kind {
    switch self {
    case .iotlb: .iotlb
    case .configurationChange: .configurationChange
    case .vringCall: .vringCall
    case .vringError: .vringError
    }
  }

  /// A request's name in the interoperation document, without its prefix.
  public static func name(of request: UInt32) -> String {
    let names = [
      "", "BACKEND_IOTLB_MSG", "BACKEND_CONFIG_CHANGE_MSG", "BACKEND_VRING_HOST_NOTIFIER_MSG", "BACKEND_VRING_CALL",
      "BACKEND_VRING_ERR", "BACKEND_SHARED_OBJECT_ADD", "BACKEND_SHARED_OBJECT_REMOVE", "BACKEND_SHARED_OBJECT_LOOKUP",
      "BACKEND_SHMEM_MAP", "BACKEND_SHMEM_UNMAP",
    ]
    return Int(request) < names.count && request != 0 ? names[Int(request)] : "back-end request \(request)"
  }

  /// Reads a request from its number and payload.
  public init(request: UInt32, payload: [UInt8]) throws(ProtocolError) {
    let name = Self.name(of: request)
    guard let kind = Kind(rawValue: request) else { throw ProtocolError(name, "this front-end does not serve it") }
    switch kind {
    case .iotlb: self = .iotlb(try IOTLBMessage(decoding: payload, of: name, padding: IOTLBMessage.padding))
    case .vringCall: self = .vringCall(try VringState(decoding: payload, of: name))
    case .vringError: self = .vringError(try VringState(decoding: payload, of: name))
    case .configurationChange:
      guard payload.isEmpty else { throw ProtocolError(name, "it has no payload, and \(payload.count) bytes came") }
      self = .configurationChange
    }
  }

  /// The payload's bytes.
  public var payload: [UInt8] {
    switch self {
    case .iotlb(let message): message.encoded
    case .configurationChange: []
    case .vringCall(let state), .vringError(let state): state.encoded
    }
  }

  /// The whole message, header included.
  public func encoded(needsReply: Bool) -> [UInt8] {
    MessageHeader.frame(request: kind.rawValue, flags: needsReply ? MessageHeader.needReply : 0, payload: payload)
  }
}
