/// What the two ends of a vhost-user connection may send each other beyond the first version of the protocol.
///
/// Bit numbers are those of QEMU 11.1's `vhost-user` interoperation document, "Protocol features".
public struct ProtocolFeatures: OptionSet, Hashable, Sendable {
  /// The 64-bit word that GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES carry.
  public var rawValue: UInt64

  /// A set from the word on the wire; unknown bits are kept, so that a peer's offer can be shown as it is.
  public init(rawValue: UInt64) { self.rawValue = rawValue }

  private init(bit: UInt64) { rawValue = 1 << bit }

  /// Bit 0: GET_QUEUE_NUM.
  public static let multiqueue = ProtocolFeatures(bit: 0)
  /// Bit 1: the dirty log is shared memory that comes with SET_LOG_BASE.
  public static let logSharedMemory = ProtocolFeatures(bit: 1)
  /// Bit 2: SEND_RARP (network devices).
  public static let rarp = ProtocolFeatures(bit: 2)
  /// Bit 3: any request may ask for an acknowledgement.
  public static let replyAck = ProtocolFeatures(bit: 3)
  /// Bit 4: NET_SET_MTU (network devices).
  public static let mtu = ProtocolFeatures(bit: 4)
  /// Bit 5: a second socket, for requests of the back-end.
  public static let backendRequests = ProtocolFeatures(bit: 5)
  /// Bit 6: SET_VRING_ENDIAN (legacy devices).
  public static let crossEndian = ProtocolFeatures(bit: 6)
  /// Bit 7: crypto sessions.
  public static let cryptoSession = ProtocolFeatures(bit: 7)
  /// Bit 8: post-copy migration.
  public static let pageFault = ProtocolFeatures(bit: 8)
  /// Bit 9: GET_CONFIG and SET_CONFIG.
  public static let configuration = ProtocolFeatures(bit: 9)
  /// Bit 10: the back-end may send file descriptors on its channel.
  public static let backendSendDescriptor = ProtocolFeatures(bit: 10)
  /// Bit 11: notification areas of the host.
  public static let hostNotifier = ProtocolFeatures(bit: 11)
  /// Bit 12: shared memory that remembers requests in flight.
  public static let inflightSharedMemory = ProtocolFeatures(bit: 12)
  /// Bit 13: RESET_DEVICE.
  public static let resetDevice = ProtocolFeatures(bit: 13)
  /// Bit 14: kicks, calls and errors as messages.
  public static let inbandNotifications = ProtocolFeatures(bit: 14)
  /// Bit 15: memory regions come and go one by one.
  public static let configureMemorySlots = ProtocolFeatures(bit: 15)
  /// Bit 16: the virtio device status is passed on.
  public static let status = ProtocolFeatures(bit: 16)
  /// Bit 17: Xen memory mappings.
  public static let xenMmap = ProtocolFeatures(bit: 17)
  /// Bit 18: shared objects (dma-buf).
  public static let sharedObject = ProtocolFeatures(bit: 18)
  /// Bit 19: the back-end's state travels over a file descriptor.
  public static let deviceState = ProtocolFeatures(bit: 19)
  /// Bit 20: GET_VRING_BASE may leave requests in flight, recorded in the shared memory of bit 12.
  public static let vringBaseInflight = ProtocolFeatures(bit: 20)
  /// Bit 21: regions, rings and IOTLB entries name guest-physical addresses instead of the front-end's own.
  public static let guestAddresses = ProtocolFeatures(bit: 21)
  /// Bit 22: shared memory regions of the device.
  public static let sharedMemoryMap = ProtocolFeatures(bit: 22)

  /// The numbers of the bits that are set, ascending.
  public var bits: [Int] { (0..<64).filter { rawValue >> UInt64($0) & 1 == 1 } }

  /// The names used by the interoperation document, for logs and for `sluice explain`, lowest bit first.
  public var names: [String] {
    (0..<64).compactMap { bit in
      guard rawValue & (1 << bit) != 0 else { return nil }
      return bit < Self.documentNames.count ? Self.documentNames[bit] : "bit \(bit)"
    }
  }

  private static let documentNames = [
    "MQ", "LOG_SHMFD", "RARP", "REPLY_ACK", "MTU", "BACKEND_REQ", "CROSS_ENDIAN", "CRYPTO_SESSION", "PAGEFAULT",
    "CONFIG",
    "BACKEND_SEND_FD", "HOST_NOTIFIER", "INFLIGHT_SHMFD", "RESET_DEVICE", "INBAND_NOTIFICATIONS", "CONFIGURE_MEM_SLOTS",
    "STATUS", "XEN_MMAP", "SHARED_OBJECT", "DEVICE_STATE", "GET_VRING_BASE_INFLIGHT", "GPA_ADDRESSES", "SHMEM_MAP",
  ]
}
