/// A request of the front-end, on the main socket.
///
/// Both ends use this type: the back-end decodes it, the front-end encodes it. Descriptors travel beside it; how many
/// must come along is ``descriptorCounts``.
public enum FrontendRequest: Hashable, Sendable {
  /// GET_FEATURES: which features the device offers.
  case getFeatures
  /// SET_FEATURES: the features in force, as a 64-bit word.
  case setFeatures(UInt64)
  /// SET_OWNER: a session starts.
  case setOwner
  /// RESET_OWNER, deprecated: all rings stop.
  case resetOwner
  /// SET_MEM_TABLE: all of the memory, at most eight regions, a descriptor each.
  case setMemoryTable([RegionDescription])
  /// SET_LOG_BASE: the dirty log, a descriptor.
  case setLogBase(LogArea)
  /// SET_LOG_FD: an eventfd to signal when the log changed.
  case setLogDescriptor
  /// SET_VRING_NUM: descriptors in a virtqueue.
  case setVringSize(VringState)
  /// SET_VRING_ADDR: a virtqueue's areas.
  case setVringAddress(VringAddress)
  /// SET_VRING_BASE: where to go on in a virtqueue.
  case setVringBase(VringState)
  /// GET_VRING_BASE: stop a virtqueue and say where it stopped.
  case getVringBase(VringState)
  /// SET_VRING_KICK: the eventfd of available buffers; starts the virtqueue.
  case setVringKick(VringDescriptor)
  /// SET_VRING_CALL: the eventfd of used buffers.
  case setVringCall(VringDescriptor)
  /// SET_VRING_ERR: the eventfd of a broken virtqueue.
  case setVringError(VringDescriptor)
  /// GET_PROTOCOL_FEATURES: what the back-end can do beyond the basics.
  case getProtocolFeatures
  /// SET_PROTOCOL_FEATURES: what of it is in force.
  case setProtocolFeatures(ProtocolFeatures)
  /// GET_QUEUE_NUM: how many virtqueues there are at most.
  case getQueueCount
  /// SET_VRING_ENABLE: a virtqueue may (1) or may not (0) have effects.
  case setVringEnable(VringState)
  /// SET_BACKEND_REQ_FD: the socket for the back-end's requests.
  case setBackendRequestDescriptor
  /// IOTLB_MSG: a translation, or the end of one.
  case iotlb(IOTLBMessage)
  /// GET_CONFIG: bytes of the configuration space.
  case getConfiguration(ConfigurationBytes)
  /// SET_CONFIG: bytes for the configuration space.
  case setConfiguration(ConfigurationBytes)
  /// GET_INFLIGHT_FD: make memory that remembers requests in flight.
  case getInflightDescriptor(InflightDescription)
  /// SET_INFLIGHT_FD: use that memory, a descriptor.
  case setInflightDescriptor(InflightDescription)
  /// RESET_DEVICE: back to the initial state.
  case resetDevice
  /// VRING_KICK: a virtqueue has available buffers.
  case vringKick(VringState)
  /// GET_MAX_MEM_SLOTS: how many regions there may be at once.
  case getMaxMemorySlots
  /// ADD_MEM_REG: a region appears, a descriptor.
  case addMemoryRegion(RegionDescription)
  /// REM_MEM_REG: a region disappears.
  case removeMemoryRegion(RegionDescription)
  /// SET_STATUS: the device status (§2.1).
  case setStatus(UInt64)
  /// GET_STATUS: the device status (§2.1).
  case getStatus
  /// SET_DEVICE_STATE_FD: save or load the device's state, a descriptor.
  case setDeviceStateDescriptor(DeviceStateTransfer)
  /// CHECK_DEVICE_STATE: did that work?
  case checkDeviceState

  /// The requests this code speaks, by number.
  public enum Kind: UInt32, CaseIterable, Sendable {
    /// GET_FEATURES.
    case getFeatures = 1
    /// SET_FEATURES.
    case setFeatures = 2
    /// SET_OWNER.
    case setOwner = 3
    /// RESET_OWNER.
    case resetOwner = 4
    /// SET_MEM_TABLE.
    case setMemoryTable = 5
    /// SET_LOG_BASE.
    case setLogBase = 6
    /// SET_LOG_FD.
    case setLogDescriptor = 7
    /// SET_VRING_NUM.
    case setVringSize = 8
    /// SET_VRING_ADDR.
    case setVringAddress = 9
    /// SET_VRING_BASE.
    case setVringBase = 10
    /// GET_VRING_BASE.
    case getVringBase = 11
    /// SET_VRING_KICK.
    case setVringKick = 12
    /// SET_VRING_CALL.
    case setVringCall = 13
    /// SET_VRING_ERR.
    case setVringError = 14
    /// GET_PROTOCOL_FEATURES.
    case getProtocolFeatures = 15
    /// SET_PROTOCOL_FEATURES.
    case setProtocolFeatures = 16
    /// GET_QUEUE_NUM.
    case getQueueCount = 17
    /// SET_VRING_ENABLE.
    case setVringEnable = 18
    /// SET_BACKEND_REQ_FD.
    case setBackendRequestDescriptor = 21
    /// IOTLB_MSG.
    case iotlb = 22
    /// GET_CONFIG.
    case getConfiguration = 24
    /// SET_CONFIG.
    case setConfiguration = 25
    /// GET_INFLIGHT_FD.
    case getInflightDescriptor = 31
    /// SET_INFLIGHT_FD.
    case setInflightDescriptor = 32
    /// RESET_DEVICE.
    case resetDevice = 34
    /// VRING_KICK.
    case vringKick = 35
    /// GET_MAX_MEM_SLOTS.
    case getMaxMemorySlots = 36
    /// ADD_MEM_REG.
    case addMemoryRegion = 37
    /// REM_MEM_REG.
    case removeMemoryRegion = 38
    /// SET_STATUS.
    case setStatus = 39
    /// GET_STATUS.
    case getStatus = 40
    /// SET_DEVICE_STATE_FD.
    case setDeviceStateDescriptor = 42
    /// CHECK_DEVICE_STATE.
    case checkDeviceState = 43
  }

  /// The request's name in the interoperation document, without its prefix; requests that are not served here have
  /// names too.
  public static func name(of request: UInt32) -> String {
    Int(request) < names.count && !names[Int(request)].isEmpty ? names[Int(request)] : "request \(request)"
  }

  private static let names = [
    "", "GET_FEATURES", "SET_FEATURES", "SET_OWNER", "RESET_OWNER", "SET_MEM_TABLE", "SET_LOG_BASE", "SET_LOG_FD",
    "SET_VRING_NUM", "SET_VRING_ADDR", "SET_VRING_BASE", "GET_VRING_BASE", "SET_VRING_KICK", "SET_VRING_CALL",
    "SET_VRING_ERR", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "GET_QUEUE_NUM", "SET_VRING_ENABLE", "SEND_RARP",
    "NET_SET_MTU", "SET_BACKEND_REQ_FD", "IOTLB_MSG", "SET_VRING_ENDIAN", "GET_CONFIG", "SET_CONFIG",
    "CREATE_CRYPTO_SESSION", "CLOSE_CRYPTO_SESSION", "POSTCOPY_ADVISE", "POSTCOPY_LISTEN", "POSTCOPY_END",
    "GET_INFLIGHT_FD", "SET_INFLIGHT_FD", "GPU_SET_SOCKET", "RESET_DEVICE", "VRING_KICK", "GET_MAX_MEM_SLOTS",
    "ADD_MEM_REG", "REM_MEM_REG", "SET_STATUS", "GET_STATUS", "GET_SHARED_OBJECT", "SET_DEVICE_STATE_FD",
    "CHECK_DEVICE_STATE", "GET_SHMEM_CONFIG",
  ]

  /// The request's number.
  public var kind: Kind {
    switch self {
    case .getFeatures: .getFeatures
    case .setFeatures: .setFeatures
    case .setOwner: .setOwner
    case .resetOwner: .resetOwner
    case .setMemoryTable: .setMemoryTable
    case .setLogBase: .setLogBase
    case .setLogDescriptor: .setLogDescriptor
    case .setVringSize: .setVringSize
    case .setVringAddress: .setVringAddress
    case .setVringBase: .setVringBase
    case .getVringBase: .getVringBase
    case .setVringKick: .setVringKick
    case .setVringCall: .setVringCall
    case .setVringError: .setVringError
    case .getProtocolFeatures: .getProtocolFeatures
    case .setProtocolFeatures: .setProtocolFeatures
    case .getQueueCount: .getQueueCount
    case .setVringEnable: .setVringEnable
    case .setBackendRequestDescriptor: .setBackendRequestDescriptor
    case .iotlb: .iotlb
    case .getConfiguration: .getConfiguration
    case .setConfiguration: .setConfiguration
    case .getInflightDescriptor: .getInflightDescriptor
    case .setInflightDescriptor: .setInflightDescriptor
    case .resetDevice: .resetDevice
    case .vringKick: .vringKick
    case .getMaxMemorySlots: .getMaxMemorySlots
    case .addMemoryRegion: .addMemoryRegion
    case .removeMemoryRegion: .removeMemoryRegion
    case .setStatus: .setStatus
    case .getStatus: .getStatus
    case .setDeviceStateDescriptor: .setDeviceStateDescriptor
    case .checkDeviceState: .checkDeviceState
    }
  }

  /// The request's name in the interoperation document, without its prefix.
  public var name: String { Self.name(of: kind.rawValue) }

  /// How many descriptors may come along. A message with another number is refused, and what came is closed.
  public var descriptorCounts: ClosedRange<Int> {
    switch self {
    case .setMemoryTable(let regions): regions.count...regions.count
    case .setVringKick(let vring), .setVringCall(let vring), .setVringError(let vring):
      vring.hasDescriptor ? 1...1 : 0...0
    case .setLogBase, .setBackendRequestDescriptor, .setInflightDescriptor, .addMemoryRegion, .setDeviceStateDescriptor:
      1...1
    // Some front-ends send the region's file again; it is closed unused.
    case .removeMemoryRegion, .setLogDescriptor: 0...1
    default: 0...0
    }
  }

  /// True if the request has an answer of its own, so that asking for an acknowledgement changes nothing.
  public var hasAnswer: Bool {
    switch self {
    case .getFeatures, .getProtocolFeatures, .getQueueCount, .getVringBase, .getConfiguration, .getInflightDescriptor,
      .getMaxMemorySlots, .getStatus, .setDeviceStateDescriptor, .checkDeviceState, .setLogBase, .iotlb:
      true
    default: false
    }
  }
}
