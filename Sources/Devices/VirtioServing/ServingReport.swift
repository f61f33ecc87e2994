public import Virtio

/// What a back-end is doing and why, for `sluice explain`: a snapshot.
public struct ServingReport: Hashable, Sendable {
  /// One virtqueue.
  public struct Queue: Hashable, Sendable {
    /// Its number.
    public var index: Int
    /// Descriptors; 0 until the front-end said.
    public var size: UInt16
    /// Whether its thread serves it.
    public var isRunning: Bool
    /// What it has done in this connection; over vfio-user since the server started.
    public var counts: QueueStatistics.Counts

    /// A virtqueue that has done nothing yet.
    public init(index: Int, size: UInt16) {
      self.index = index
      self.size = size
      isRunning = false
      counts = QueueStatistics.Counts()
    }
  }

  /// Translations of a connection.
  public struct Translations: Hashable, Sendable {
    /// Bytes that the device can reach now.
    public var reachableBytes: UInt64 = 0
    /// The most that ``reachableBytes`` has been.
    public var peakReachableBytes: UInt64 = 0
    /// Mappings in force.
    public var mappings = 0
    /// Look-ups that the queues' caches or the table answered.
    public var hits: UInt64 = 0
    /// Look-ups that they could not answer.
    public var misses: UInt64 = 0
    /// Questions sent to the front-end; several misses may share one.
    public var questions: UInt64 = 0
    /// Mappings received.
    public var updates: UInt64 = 0
    /// Invalidations received.
    public var invalidations: UInt64 = 0
    /// Accesses refused.
    public var faults: UInt64 = 0
    /// How often the table was full and was emptied.
    public var evictions: UInt64 = 0
    /// Mappings received that lead from an address to the same guest-physical one.
    public var identities: UInt64 = 0
    /// Mappings received for an address that led elsewhere, which no invalidation had taken back.
    public var moved: UInt64 = 0

    /// None yet.
    public init() {}
  }

  /// What the device is called.
  public var name = ""
  /// What kind of device it is, if it is not virtio, for example `nvme`; what is virtio's own is empty then.
  public var otherKind: String?
  /// The client of vfio-user; nil over vhost-user.
  public var client: Client?
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
  public var protocolFeatures: [Int] = []
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
  public var iotlb = Translations()
  /// The virtqueues, by number: up to the last one that the front-end has given a size.
  public var queues: [Queue] = []
  /// Virtqueues that the device has.
  public var queueLimit = 0
  /// The last access that was refused, and why, as a clause; nil if there was none.
  public var lastFault: String?
  /// Why nothing may happen although all seems well, in a sentence; nil where nothing is known.
  public var advice: String?
  /// What else there is to say about the device.
  public var facts: [ReportFact] = []

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
