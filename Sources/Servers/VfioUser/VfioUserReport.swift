internal import DMA
internal import IOMMUInterface
internal import Synchronization
internal import VirtioServing

/// Keeps the data of `ServingReport` that come from connections, and puts the rest beside them. The server's thread
/// writes, any thread reads.
final class VfioUserReport: Sendable {
  private struct State {
    var isConnected = false
    var sessions: UInt64 = 0
    var failedSessions: UInt64 = 0
    var lastFailure: String?
  }
  private let state = Mutex(State())
  private let name: String
  private let hosted: HostedFunction
  private let describe: @Sendable (inout ServingReport) -> Void
  /// Refused accesses that are shown.
  private static let shownRefusals = 4

  init(_ name: String, _ hosted: HostedFunction, _ describe: @escaping @Sendable (inout ServingReport) -> Void) {
    self.name = name
    self.hosted = hosted
    self.describe = describe
  }

  func sessionBegan() {
    hosted.memory.ledger.restart()
    state.withLock { state in
      state.isConnected = true
      state.sessions += 1
    }
  }

  /// - Parameter failure: why, if it did not end well.
  func sessionEnded(_ failure: String?) {
    state.withLock { state in
      state.isConnected = false
      guard let failure else { return }
      state.failedSessions += 1
      state.lastFailure = failure
    }
  }

  /// The figures now.
  var statistics: ServingReport {
    var report = ServingReport()
    report.name = name
    let state = state.withLock { $0 }
    (report.isConnected, report.sessions) = (state.isConnected, state.sessions)
    (report.failedSessions, report.lastFailure) = (state.failedSessions, state.lastFailure)
    let client = client
    report.client = client
    report.memoryBytes = client.fileBytes
    report.memoryRegions = client.files
    report.lostPages = hosted.memory.memory.lostPages
    report.reachableBytes = client.reachableBytes
    report.peakReachableBytes = client.peakMappedBytes
    report.lastFault = client.lastRefusals.last
    describe(&report)
    return report
  }

  private var client: ServingReport.Client {
    var client = ServingReport.Client()
    let memory = hosted.memory
    client.mappings = memory.domain.mappings + memory.remote.mappings
    client.mappedBytes = memory.domain.byteCount
    (client.mappingsWithoutDescriptor, client.bytesWithoutDescriptor) = (
      memory.remote.mappings, memory.remote.byteCount
    )
    let messages = memory.messages.counts
    (client.accessesByMessage, client.refusedByClient) = (messages.accesses, messages.refused)
    (client.files, client.fileBytes) = memory.files
    let counts = memory.ledger.counts
    (client.maps, client.refusedMaps, client.unmaps) = (counts.maps, counts.refusedMaps, counts.unmaps)
    client.peakMappedBytes = counts.peakBytes
    client.refusals = memory.domain.faultCount
    client.lastRefusals = memory.domain.faults.suffix(Self.shownRefusals).map(\.description)
    let interrupts = hosted.interrupts.counts
    client.vectors = hosted.table?.vectors ?? 0
    (client.connectedVectors, client.isPinConnected) = (interrupts.vectors, interrupts.hasPin)
    (client.interrupts, client.lostInterrupts) = (interrupts.sent, interrupts.lost)
    client.offersSharedDoorbells = hosted.offersDoorbells
    if let page = hosted.page { (client.sharesDoorbells, client.doorbells) = (true, page.doorbells) }
    return client
  }
}
