internal import DMA
internal import Logging
internal import Synchronization
internal import VhostUser
internal import Virtio
internal import VirtioServing

/// Keeps the data of `ServingReport`. The session's control thread writes, any thread reads.
final class BackendReport: Sendable {
  /// What can be asked while a session runs.
  private struct Live: Sendable {
    var runner: DeviceRunner
    var iotlb: IOTLBSpace
    var memory: GuestMemory
  }
  private struct State {
    var facts: ServingReport
    var live: Live?
    var peakMemory: UInt64 = 0
    var idle: ReportFact
    var lastFault: (DMAFault, AddressPath)?
    /// Whether the log of this session has the hint about invalidations.
    var isHinted = false
  }
  private let state: Mutex<State>
  private let more: @Sendable () -> [ReportFact]

  /// `more` gives further facts about the device; called for each report, on any thread.
  init(_ device: any VirtioDevice, _ options: BackendOptions, _ more: @escaping @Sendable () -> [ReportFact]) {
    self.more = more
    var facts = ServingReport()
    facts.name = options.name
    facts.device = device.id
    facts.policy = options.accessPlatform
    facts.translations = options.translations
    facts.offeredFeatures = options.features(of: device)
    facts.reason = "no front-end has connected yet"
    facts.queueLimit = device.maxQueueSizes.count
    state = Mutex(State(facts: facts, idle: IdleLatency(options.idleLatency).fact))
  }

  func sessionBegan(_ session: BackendSession) {
    let (runner, iotlb, memory) = (session.runner, session.iotlb, session.table.memory)
    state.withLock { state in
      let old = state.facts
      state.facts = ServingReport()
      state.facts.name = old.name
      state.facts.device = old.device
      state.facts.policy = old.policy
      state.facts.translations = old.translations
      state.facts.offeredFeatures = old.offeredFeatures
      state.facts.queueLimit = old.queueLimit
      state.facts.sessions = old.sessions + 1
      state.facts.failedSessions = old.failedSessions
      state.facts.lastFailure = old.lastFailure
      state.facts.isConnected = true
      state.facts.reason = "features are not negotiated yet"
      state.live = Live(runner: runner, iotlb: iotlb, memory: memory)
      state.peakMemory = 0
      state.lastFault = nil
      state.isHinted = false
    }
  }

  /// Called after every batch of messages.
  func refresh(_ session: BackendSession) {
    let features = session.features
    let protocolFeatures = session.protocolFeatures.bits
    let isSet = session.hasFeatures
    let path = session.addressPath
    let policy = session.options.accessPlatform
    let status =
      UInt8(truncatingIfNeeded: session.status)
      | (session.vringErrors.needsReset ? DeviceStatus.needsReset.rawValue : 0)
    // Of the many that a device may have, mostly the first few.
    let described = session.vrings.prefix((session.vrings.lastIndex { $0.size != nil } ?? -1) + 1)
    let sizes = described.map { $0.size ?? 0 }
    let memory = session.table.memory.byteCount
    let idle = session.idle.fact
    state.withLock { state in
      state.idle = idle
      state.facts.negotiatedFeatures = features
      state.facts.protocolFeatures = protocolFeatures
      state.facts.addressPath = isSet ? path : nil
      state.facts.reason = Self.reason(isSet ? path : nil, policy)
      state.facts.status = status
      state.facts.queues = sizes.enumerated().map {
        ServingReport.Queue(index: $0, size: $1)
      }
      // Rings and buffers can be reached without an IOMMU only once features are set.
      if isSet, path == .physical { state.peakMemory = max(state.peakMemory, memory) }
    }
    if path == .platform { hint(session) }
  }

  /// Says once in a session's log that unmaps do not seem to get here.
  private func hint(_ session: BackendSession) {
    guard session.options.translations == .keep, session.iotlb.missesInvalidations, !state.withLock({ $0.isHinted })
    else { return }
    state.withLock { $0.isHinted = true }
    session.log.warning("\(ServingReport.invalidationHint)")
  }

  private static func reason(
    _ path: AddressPath?, _ policy: AccessPlatformPolicy
  ) -> String {
    switch (path, policy) {
    case (nil, _): "features are not negotiated yet"
    case (.platform, _):
      "the front-end set VIRTIO_F_ACCESS_PLATFORM: an IOMMU is in front of the device, and only what it maps can be "
        + "reached"
    case (.physical, .off):
      "this back-end was told not to offer VIRTIO_F_ACCESS_PLATFORM: all of the guest's memory can be reached"
    case (.physical, _):
      "the front-end did not set VIRTIO_F_ACCESS_PLATFORM: no IOMMU is in front of the device, and all of the guest's "
        + "memory can be reached"
    }
  }

  /// An access was refused. On queue threads.
  func faulted(_ fault: DMAFault, _ path: AddressPath) { state.withLock { $0.lastFault = (fault, path) } }

  /// Something seems wrong that no other message reports.
  func advised(_ sentence: String) { state.withLock { $0.facts.advice = sentence } }

  func sessionFailed(_ sentence: String) {
    state.withLock { state in
      state.facts.failedSessions += 1
      state.facts.lastFailure = sentence
    }
  }

  /// The queues stand still: the last figures are kept.
  func sessionEnded(_ session: BackendSession) {
    let last = statistics
    state.withLock { state in
      let failed = state.facts.failedSessions
      state.facts = last
      state.facts.failedSessions = failed
      state.facts.isConnected = false
      if state.facts.addressPath == nil { state.facts.reason = "no features were in force when the front-end went" }
      state.facts.reachableBytes = 0
      state.live = nil
    }
  }

  /// The figures now.
  var statistics: ServingReport {
    let (base, live, peakMemory, fault, idle) = state.withLock {
      ($0.facts, $0.live, $0.peakMemory, $0.lastFault, $0.idle)
    }
    var facts = base
    facts.facts = more()
    facts.facts.append(idle)
    guard let live else { return facts }
    facts.lastFault = fault.map { FaultLog.words($0.0, $0.1) }
    facts.memoryBytes = live.memory.byteCount
    facts.memoryRegions = live.memory.regions.count
    facts.lostPages = live.memory.lostPages
    facts.iotlb = live.iotlb.statistics
    switch facts.addressPath {
    case .platform:
      facts.reachableBytes = facts.iotlb.reachableBytes
      facts.peakReachableBytes = max(facts.iotlb.peakReachableBytes, peakMemory)
    case .physical:
      facts.reachableBytes = facts.memoryBytes
      facts.peakReachableBytes = max(facts.iotlb.peakReachableBytes, peakMemory)
    case nil: break
    }
    if facts.looksLikePassThrough {
      facts.reason =
        "the front-end set VIRTIO_F_ACCESS_PLATFORM: an IOMMU is in front of the device, and it looks like "
        + "pass-through, since every mapping so far leads from an address to itself: all of the guest's memory would "
        + "be granted on asking"
    }
    let counts = live.runner.counts
    for i in facts.queues.indices where i < counts.count {
      facts.queues[i].counts = counts[i]
      facts.queues[i].isRunning = live.runner.isRunning(i)
    }
    // A request that arrived proves it wrong.
    if counts.contains(where: { $0.requests > 0 }) { facts.advice = nil }
    return facts
  }
}
