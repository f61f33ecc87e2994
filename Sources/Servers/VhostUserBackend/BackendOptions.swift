public import Virtio
public import VirtioServing

/// Whether a driver may put the descriptors of a request into a table of their own (VIRTIO_F_INDIRECT_DESC, §2.7.5.3).
///
/// Where drivers map anew for every request, the table is one more mapping, and has to be asked for before it is known
/// what else to ask for. Without it a request takes as many of the ring's descriptors as it has pieces.
public enum IndirectPolicy: String, Hashable, Sendable, CaseIterable {
  /// Offered, unless an IOMMU is certain (`AccessPlatformPolicy.on`).
  case auto
  /// Offered.
  case on
  /// Not offered.
  case off
}

/// How a back-end serves.
public struct BackendOptions: Hashable, Sendable {
  /// What threads and log messages call the device, `blk` say.
  public var name: String
  /// See `AccessPlatformPolicy`.
  public var accessPlatform: AccessPlatformPolicy
  /// Whether packed rings (§2.8) are offered. User-mode Linux takes them and then starts them with the wrap counters of
  /// a ring that has gone round once, so that nothing it makes available is ever seen.
  public var offersPackedRings = true
  /// See ``IndirectPolicy``.
  public var indirect = IndirectPolicy.auto
  /// See ``IdleLatencyPolicy``.
  public var idleLatency = IdleLatencyPolicy.auto
  /// See `TranslationPolicy`.
  public var translations: TranslationPolicy
  /// End after the first connection.
  public var once: Bool
  /// Nodes of 4 KiB that the table of translations may have; see `TranslationTable`. 8192 remember 16 GiB that are
  /// mapped page by page. Beyond that the table is emptied, and what is in use is asked for again.
  public var maxTranslationNodes: Int
  /// How long after a kick a request must have been seen, or the guest's memory seems not to be shared.
  package var kickPatience: Duration = .seconds(2)
  /// How long a virtqueue may take to stop before it gives up what it can; see `QueueStop`.
  package var stopPatience: Duration = .seconds(10)

  /// Options with their usual values.
  public init(
    name: String = "virtio", accessPlatform: AccessPlatformPolicy = .auto, translations: TranslationPolicy = .keep,
    once: Bool = false, maxTranslationNodes: Int = 1 << 13
  ) {
    self.name = name
    self.accessPlatform = accessPlatform
    self.translations = translations
    self.once = once
    self.maxTranslationNodes = maxTranslationNodes
  }
}

extension BackendOptions {
  /// What a front-end is offered: the device's features and those of its transport, without vhost's own.
  func features(of device: any VirtioDevice) -> Features {
    var offered = device.features
    if accessPlatform != .off { offered.insert(.accessPlatform) }
    if !offersPackedRings { offered.remove(.ringPacked) }
    if !indirect.isOffered(for: device, accessPlatform: accessPlatform) { offered.remove(.indirectDescriptors) }
    // No message resets a single queue of a disk, and QEMU does not inform the back-end of such a reset: the queue
    // would be silent afterwards.
    offered.remove(.ringReset)
    return offered
  }

}

extension IndirectPolicy {
  /// Whether a device offers VIRTIO_F_INDIRECT_DESC.
  public func isOffered(for device: any VirtioDevice, accessPlatform: AccessPlatformPolicy) -> Bool {
    switch self {
    case .on: true
    case .off: false
    // Where no driver uses an indirect table, withholding the bit would gain nothing; and QEMU 7.2 would fail: for its
    // one device of that kind it sets the bit even if it is not offered.
    case .auto: accessPlatform != .on || device.hasSingleBufferRequests
    }
  }
}
