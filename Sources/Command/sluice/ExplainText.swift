import Virtio
import VirtioServing

/// ``ServingReport`` for people: what `sluice explain` prints.
extension ServingReport {
  /// A screen of words, 100 columns wide.
  var words: String {
    var screen = ExplainScreen()
    screen.lines.append(name == kind ? name : "\(name): \(kind)")
    for fact in facts { screen.line(fact.title, fact.words) }
    screen.line(
      client == nil ? "front-end" : "client",
      isConnected
        ? "connected (connection \(sessions))"
        : sessions == 0
          ? "none yet"
          : client == nil
            ? "none now; the rest is about the last of \(sessions)"
            : "none now, after \(counted(sessions, "connection"))")
    if let client { describe(client, on: &screen) } else { describeTranslations(on: &screen) }
    if otherKind == nil { describeQueues(on: &screen) }
    if lostPages > 0 { screen.line("lost pages", "\(lostPages): the front-end cut a memory file short") }
    if let lastFailure {
      screen.line(
        "failures",
        "\(counted(failedSessions, "connection")) ended by an error\(client == nil ? "" : " since the server started"), the last one by: \(lastFailure)"
      )
    }
    return screen.lines.joined(separator: "\n") + "\n"
  }

  /// What a front-end negotiated, and what can be reached through its translations.
  private func describeTranslations(on screen: inout ExplainScreen) {
    screen.line("bit 33", "VIRTIO_F_ACCESS_PLATFORM: \(accepted)")
    screen.line("path", pathInWords)
    screen.line("why", reason)
    if memoryBytes > 0, looksLikePassThrough {
      screen.line(
        "reachable",
        "\(Self.bytes(memoryBytes)) on request, which is all of guest memory; requested so far: \(Self.bytes(reachableBytes)) now, "
          + "\(Self.bytes(peakReachableBytes)) at most")
    } else if memoryBytes > 0 {
      screen.line(
        "reachable",
        "\(Self.bytes(reachableBytes)) now, \(Self.bytes(peakReachableBytes)) at most\(percent), of \(Self.bytes(memoryBytes)) of guest memory"
      )
    } else {
      screen.line(
        "reachable", isOver ? "nothing: no guest memory was known at the end" : "nothing: no guest memory is known yet")
    }
    if addressPath == .platform {
      screen.line(
        "translations",
        "\(counted(iotlb.mappings, "mapping")) in force; \(counted(iotlb.hits, "hit")), "
          + "\(counted(iotlb.misses, "miss", "misses")); \(iotlb.questions) MISS sent, "
          + "\(iotlb.updates) UPDATE and \(iotlb.invalidations) INVALIDATE received"
          + (iotlb.evictions > 0 ? ", emptied \(counted(iotlb.evictions, "time")) because it was full" : "")
          + (translations == .once ? "; each is kept for one request" : ""))
    }
    if missesInvalidations { screen.line("warning", Self.invalidationHint) }
    if let advice { screen.line("warning", advice) }
    screen.line("faults", faults == 0 ? "0" : lastFault.map { "\(faults), the last one: \($0)" } ?? "\(faults)")
  }

  /// Rings and requests.
  private func describeQueues(on screen: inout ExplainScreen) {
    if addressPath != nil {
      screen.line(
        "rings",
        "\(isPacked ? "packed" : "split"), indirect tables \(acceptsIndirect ? "accepted" : offersIndirect ? "not accepted" : "not offered"), "
          + "\(queues.filter(\.isRunning).count) running; "
          + "the device has \(counted(queueLimit, "queue"))"
      )
    }
    let total = totals
    screen.line(
      "requests",
      "\(total.requests) taken, \(total.completions) done\(client == nil ? "" : " since the server started"); \(Self.bytes(total.readableBytes)) read from the guest, \(Self.bytes(total.writtenBytes)) written to it"
    )
    for queue in queues.prefix(Self.mostQueues) where queueLimit > 1 && queue.size > 0 {
      let counts = queue.counts
      screen.line(
        "queue \(queue.index)",
        "\(queue.isRunning ? "running" : "stopped"), size \(queue.size); \(counts.requests) taken, \(counts.completions) done, "
          + "\(counted(counts.waits, "wait")) for a translation, \(counted(counts.faults, "fault")), "
          + "\(counted(counts.calls, "call"))"
      )
    }
    if queues.count > Self.mostQueues {
      screen.line("", "and \(counted(queues.count - Self.mostQueues, "more queue")); --json has all")
    }
  }

  /// Queues that the text lists one by one.
  private static let mostQueues = 16

  /// A front-end was there, and the figures are its last ones.
  private var isOver: Bool { !isConnected && sessions > 0 }
  var accepted: String {
    let offered = policy == .on ? "offered, and required" : offersAccessPlatform ? "offered" : "not offered"
    return switch addressPath {
    case nil where sessions == 0: offersAccessPlatform ? "to be \(offered)" : "will not be offered"
    case nil:
      isOver ? "\(offered); no features were in force at the end" : "\(offered); features are not negotiated yet"
    case .platform: "\(offered), accepted"
    case .physical: offersAccessPlatform ? "\(offered), not accepted" : offered
    }
  }
  private var pathInWords: String {
    switch addressPath {
    case nil: isOver ? "none at the end" : "none yet"
    case .platform: "platform: addresses are translated, page by page, by what the front-end's IOMMU maps"
    case .physical: "physical: addresses are the guest's own, and no IOMMU is asked"
    }
  }
  var percent: String {
    guard memoryBytes > 0 else { return "" }
    let tenths = (peakReachableBytes &* 1000) / memoryBytes
    return " (\(tenths / 10).\(tenths % 10) %)"
  }

  /// 4096 as `4.0 KiB`.
  static func bytes(_ count: UInt64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"]
    guard count >= 1024 else { return "\(count) B" }
    var unit = 0
    var size = count
    while size >= 1024 * 1024, unit < units.count - 1 {
      size /= 1024
      unit += 1
    }
    return "\(size / 1024).\(size % 1024 * 10 / 1024) \(units[unit])"
  }
}
