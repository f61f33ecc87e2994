public import SocketMessages

extension FrontendRequest {
  /// Reads a request from its number and payload.
  ///
  /// - Throws: `ProtocolError` if the number is unknown or the payload does not have the request's layout.
  public init(request: UInt32, payload: [UInt8]) throws(ProtocolError) {
    let name = Self.name(of: request)
    guard let kind = Kind(rawValue: request) else { throw ProtocolError(name, "this back-end does not serve it") }
    switch kind {
    case .setFeatures: self = .setFeatures(try UInt64(payload: payload, of: name))
    case .setProtocolFeatures:
      self = .setProtocolFeatures(ProtocolFeatures(rawValue: try UInt64(payload: payload, of: name)))
    case .setStatus: self = .setStatus(try UInt64(payload: payload, of: name))
    case .setMemoryTable: self = .setMemoryTable(try RegionTable(decoding: payload, of: name).regions)
    case .addMemoryRegion: self = .addMemoryRegion(try SingleRegion(decoding: payload, of: name).region)
    case .removeMemoryRegion: self = .removeMemoryRegion(try SingleRegion(decoding: payload, of: name).region)
    case .setLogBase: self = .setLogBase(try LogArea(decoding: payload, of: name))
    case .setVringSize: self = .setVringSize(try VringState(decoding: payload, of: name))
    case .setVringBase: self = .setVringBase(try VringState(decoding: payload, of: name))
    case .getVringBase: self = .getVringBase(try VringState(decoding: payload, of: name))
    case .setVringEnable: self = .setVringEnable(try VringState(decoding: payload, of: name))
    case .vringKick: self = .vringKick(try VringState(decoding: payload, of: name))
    case .setVringAddress: self = .setVringAddress(try VringAddress(decoding: payload, of: name))
    case .setVringKick: self = .setVringKick(try VringDescriptor(decoding: payload, of: name))
    case .setVringCall: self = .setVringCall(try VringDescriptor(decoding: payload, of: name))
    case .setVringError: self = .setVringError(try VringDescriptor(decoding: payload, of: name))
    case .iotlb: self = .iotlb(try IOTLBMessage(decoding: payload, of: name, padding: IOTLBMessage.padding))
    case .getConfiguration: self = .getConfiguration(try ConfigurationBytes(decoding: payload, of: name))
    case .setConfiguration: self = .setConfiguration(try ConfigurationBytes(decoding: payload, of: name))
    case .getInflightDescriptor:
      self = .getInflightDescriptor(
        try InflightDescription(decoding: payload, of: name, padding: InflightDescription.padding))
    case .setInflightDescriptor:
      self = .setInflightDescriptor(
        try InflightDescription(decoding: payload, of: name, padding: InflightDescription.padding))
    case .setDeviceStateDescriptor:
      self = .setDeviceStateDescriptor(try DeviceStateTransfer(decoding: payload, of: name))
    // QEMU and libvhost-user send a word with it; the document says there is none.
    case .setLogDescriptor: self = .setLogDescriptor
    default:
      guard payload.isEmpty else { throw ProtocolError(name, "it has no payload, and \(payload.count) bytes came") }
      self = Self.withoutPayload(kind)
    }
  }

  private static func withoutPayload(_ kind: Kind) -> FrontendRequest {
    switch kind {
    case .getFeatures: .getFeatures
    case .setOwner: .setOwner
    case .resetOwner: .resetOwner
    case .getProtocolFeatures: .getProtocolFeatures
    case .getQueueCount: .getQueueCount
    case .setBackendRequestDescriptor: .setBackendRequestDescriptor
    case .resetDevice: .resetDevice
    case .getMaxMemorySlots: .getMaxMemorySlots
    case .getStatus: .getStatus
    case .checkDeviceState: .checkDeviceState
    default: preconditionFailure("\(kind) has a payload")
    }
  }

  /// The payload's bytes.
  public var payload: [UInt8] {
    switch self {
    case .setFeatures(let word), .setStatus(let word): word.payload
    case .setProtocolFeatures(let features): features.rawValue.payload
    case .setMemoryTable(let regions): RegionTable(regions).encoded
    case .addMemoryRegion(let region), .removeMemoryRegion(let region): SingleRegion(region).encoded
    case .setLogBase(let area): area.encoded
    case .setVringSize(let state), .setVringBase(let state), .getVringBase(let state), .setVringEnable(let state),
      .vringKick(let state):
      state.encoded
    case .setVringAddress(let address): address.encoded
    case .setVringKick(let vring), .setVringCall(let vring), .setVringError(let vring): vring.encoded
    case .iotlb(let message): message.encoded
    case .getConfiguration(let bytes), .setConfiguration(let bytes): bytes.encoded
    case .getInflightDescriptor(let area), .setInflightDescriptor(let area): area.encoded
    case .setDeviceStateDescriptor(let transfer): transfer.encoded
    default: []
    }
  }

  /// The whole message, header included.
  public func encoded(needsReply: Bool = false) -> [UInt8] {
    MessageHeader.frame(request: kind.rawValue, flags: needsReply ? MessageHeader.needReply : 0, payload: payload)
  }
}

/// The back-end's answer to a request of the front-end.
public enum BackendReply: Hashable, Sendable {
  /// A word: features, a count, a status; or an acknowledgement, where 0 is success.
  case value(UInt64)
  /// GET_VRING_BASE.
  case vring(VringState)
  /// GET_CONFIG; nil says that the bytes cannot be had.
  case configuration(ConfigurationBytes?)
  /// GET_INFLIGHT_FD; the file travels beside it.
  case inflight(InflightDescription)

  /// An acknowledgement of success.
  public static let success = BackendReply.value(0)
  /// An acknowledgement of failure.
  public static let failure = BackendReply.value(1)

  /// Reads the answer to request number `kind`.
  public init(to kind: FrontendRequest.Kind, payload: [UInt8]) throws(ProtocolError) {
    let name = FrontendRequest.name(of: kind.rawValue)
    switch kind {
    case .getVringBase: self = .vring(try VringState(decoding: payload, of: name))
    case .getConfiguration:
      self = .configuration(payload.isEmpty ? nil : try ConfigurationBytes(decoding: payload, of: name))
    case .getInflightDescriptor:
      self = .inflight(try InflightDescription(decoding: payload, of: name, padding: InflightDescription.padding))
    // What the answer to SET_LOG_BASE holds is not defined: some send nothing, some the request's payload.
    case .setLogBase where payload.count != 8: self = .success
    default: self = .value(try UInt64(payload: payload, of: name))
    }
  }

  /// The payload's bytes.
  public var payload: [UInt8] {
    switch self {
    case .value(let word): word.payload
    case .vring(let state): state.encoded
    case .configuration(let bytes): bytes?.encoded ?? []
    case .inflight(let area): area.encoded
    }
  }

  /// The whole answer to request number `request`, header included.
  public func encoded(to request: UInt32) -> [UInt8] {
    MessageHeader.frame(request: request, flags: MessageHeader.reply, payload: payload)
  }
}
