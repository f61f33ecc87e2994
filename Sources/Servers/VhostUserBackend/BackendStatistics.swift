public import VhostUser
public import Virtio

/// What a back-end is doing and why, for `sluice explain`: a snapshot.
public struct BackendStatistics: Hashable, Sendable {
  /// One virtqueue.
  public struct Queue: Hashable, Sendable {
    /// Its number.
    public var index: Int
    /// Descriptors; 0 until the front-end said.
    public var size: UInt16
    /// Whether its thread serves it.
    public var isRunning: Bool
    /// What it has done in this connection.
    public var counts: QueueStatistics.Counts
  }

  /// What the device is called.
  public var name = ""
  /// What kind of device it is (§5).
  public var device = DeviceID(rawValue: 0)
  /// Whether VIRTIO_F_ACCESS_PLATFORM is offered, and has to be accepted.
  public var policy = AccessPlatformPolicy.auto
  /// How long translations are kept.
  public var translations = TranslationPolicy.keep
  /// Whether a front-end is connected. If not, the rest is about the last one.
  public var isConnected = false
  /// Connections so far.
  public var sessions: UInt64 = 0
  /// Connections that ended because the front-end broke the protocol, or for an error of this host.
  public var failedSessions: UInt64 = 0
  /// How the last of them ended, in a sentence; nil if there was none.
  public var lastFailure: String?
  /// What the device offers to every front-end, vhost's own bits 26 and 30 left out.
  public var offeredFeatures = Features(word: 0)
  /// What was set last.
  public var negotiatedFeatures = Features(word: 0)
  /// What the front-end set.
  public var protocolFeatures: ProtocolFeatures = []
  /// Whose addresses the device is given; nil before SET_FEATURES.
  public var addressPath: AddressPath?
  /// Why, in a sentence.
  public var reason = ""
  /// The device status (§2.1), if the front-end passes it on.
  public var status: UInt8 = 0
  /// Bytes of guest memory in the memory table.
  public var memoryBytes: UInt64 = 0
  /// Regions in the memory table.
  public var memoryRegions = 0
  /// Pages that vanished because the front-end cut a file short.
  public var lostPages: UInt64 = 0
  /// Bytes of guest memory that the device can reach now.
  public var reachableBytes: UInt64 = 0
  /// The most of them so far.
  public var peakReachableBytes: UInt64 = 0
  /// Translations; without ACCESS_PLATFORM all is 0.
  public var iotlb = IOTLBStatistics()
  /// The virtqueues, by number: up to the last one that the front-end has given a size.
  public var queues: [Queue] = []
  /// Virtqueues that the device has.
  public var queueLimit = 0
  /// The last access that was refused, and why, as a clause; nil if there was none.
  public var lastFault: String?
  /// Why nothing may happen although all seems well, in a sentence; nil where nothing is known.
  public var advice: String?
  /// What else there is to say about the device.
  public var facts: [BackendFact] = []

  /// No connection yet.
  public init() {}

  /// Whether VIRTIO_F_ACCESS_PLATFORM was offered.
  public var offersAccessPlatform: Bool { offeredFeatures.contains(.accessPlatform) }
  /// Whether VIRTIO_F_INDIRECT_DESC was offered.
  public var offersIndirect: Bool { offeredFeatures.contains(.indirectDescriptors) }
  /// Whether a request may have a table of descriptors of its own (§2.7.5.3).
  public var acceptsIndirect: Bool { negotiatedFeatures.contains(.indirectDescriptors) }
  /// Whether rings are packed (§2.8), not split (§2.7).
  public var isPacked: Bool { negotiatedFeatures.contains(.ringPacked) }
}
