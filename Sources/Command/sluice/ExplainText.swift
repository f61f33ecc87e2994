import Virtio
import VirtioServing

/// ``ServingReport`` for people: what `sluice explain` prints.
extension ServingReport {
  /// A screen of words, 100 columns wide.
  var words: String {
    var lines: [String] = []
    func line(_ title: String, _ text: String) { lines += Self.folded(title, text) }
    lines.append("\(name): \(kind)")
    for fact in facts { line(fact.title, fact.words) }
    line(
      "front-end",
      isConnected
        ? "connected (connection \(sessions))"
        : sessions == 0 ? "none yet" : "none now; the rest is about the last of \(sessions)")
    line("bit 33", "VIRTIO_F_ACCESS_PLATFORM: \(accepted)")
    line("path", pathInWords)
    line("why", reason)
    if memoryBytes > 0, looksLikePassThrough {
      line(
        "reachable",
        "\(Self.bytes(memoryBytes)) on request, which is all of guest memory; requested so far: \(Self.bytes(reachableBytes)) now, "
          + "\(Self.bytes(peakReachableBytes)) at most")
    } else if memoryBytes > 0 {
      line(
        "reachable",
        "\(Self.bytes(reachableBytes)) now, \(Self.bytes(peakReachableBytes)) at most\(percent), of \(Self.bytes(memoryBytes)) of guest memory"
      )
    } else {
      line(
        "reachable", isOver ? "nothing: no guest memory was known at the end" : "nothing: no guest memory is known yet")
    }
    if addressPath == .platform {
      line(
        "translations",
        "\(counted(iotlb.mappings, "mapping")) in force; \(counted(iotlb.hits, "hit")), "
          + "\(counted(iotlb.misses, "miss", "misses")); \(iotlb.questions) MISS sent, "
          + "\(iotlb.updates) UPDATE and \(iotlb.invalidations) INVALIDATE received"
          + (iotlb.evictions > 0 ? ", emptied \(counted(iotlb.evictions, "time")) because it was full" : "")
          + (translations == .once ? "; each is kept for one request" : ""))
    }
    if missesInvalidations { line("warning", Self.invalidationHint) }
    if let advice { line("warning", advice) }
    line("faults", faults == 0 ? "0" : lastFault.map { "\(faults), the last one: \($0)" } ?? "\(faults)")
    if addressPath != nil {
      line(
        "rings",
        "\(isPacked ? "packed" : "split"), indirect tables \(acceptsIndirect ? "accepted" : offersIndirect ? "not accepted" : "not offered"), "
          + "\(queues.filter(\.isRunning).count) running; "
          + "the device has \(counted(queueLimit, "queue"))"
      )
    }
    let total = totals
    line(
      "requests",
      "\(total.requests) taken, \(total.completions) done; \(Self.bytes(total.readableBytes)) read from the guest, \(Self.bytes(total.writtenBytes)) written to it"
    )
    for queue in queues.prefix(Self.mostQueues) where queueLimit > 1 && queue.size > 0 {
      let counts = queue.counts
      line(
        "queue \(queue.index)",
        "\(queue.isRunning ? "running" : "stopped"), size \(queue.size); \(counts.requests) taken, \(counts.completions) done, "
          + "\(counted(counts.waits, "wait")) for a translation, \(counted(counts.faults, "fault")), "
          + "\(counted(counts.calls, "call"))"
      )
    }
    if queues.count > Self.mostQueues {
      line("", "and \(counted(queues.count - Self.mostQueues, "more queue")); --json has all")
    }
    if lostPages > 0 { line("lost pages", "\(lostPages): the front-end cut a memory file short") }
    if let lastFailure {
      line("failures", "\(counted(failedSessions, "connection")) ended by an error, the last one by: \(lastFailure)")
    }
    return lines.joined(separator: "\n") + "\n"
  }

  /// Queues that the text lists one by one.
  private static let mostQueues = 16

  /// A front-end was there, and the figures are its last ones.
  private var isOver: Bool { !isConnected && sessions > 0 }
  private var accepted: String {
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
  private var percent: String {
    guard memoryBytes > 0 else { return "" }
    let tenths = (peakReachableBytes &* 1000) / memoryBytes
    return " (\(tenths / 10).\(tenths % 10) %)"
  }

  /// A title and its text, the text broken between words and indented below itself.
  private static func folded(_ title: String, _ text: String) -> [String] {
    let indent = 15
    var lines: [String] = []
    var line = "  " + title.padded(to: indent - 2)
    var isEmpty = true
    for word in text.split(separator: " ") {
      if !isEmpty, line.count + 1 + word.count > 100 {
        lines.append(line)
        line = "".padded(to: indent)
        isEmpty = true
      }
      line += (isEmpty ? "" : " ") + word
      isEmpty = false
    }
    return lines + [line]
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
