import Virtio

/// ``BackendStatistics`` for people and for programs.
extension BackendStatistics {
  /// A screen of words.
  public var words: String {
    var lines: [String] = []
    func line(_ title: String, _ text: String) {
      lines.append("  " + title + String(repeating: " ", count: max(1, 13 - title.count)) + text)
    }
    lines.append("\(name): \(Self.kind(device))")
    line("front-end", isConnected ? "connected (connection \(sessions))" : sessions == 0 ? "none yet" : "none now; the rest is about the last of \(sessions)")
    line("bit 33", "\(offersAccessPlatform ? "offered" : "not offered"), \(accepted)")
    line("path", pathInWords)
    line("why", reason)
    line("reachable", "\(Self.bytes(reachableBytes)) now, \(Self.bytes(peakReachableBytes)) at most, of \(Self.bytes(memoryBytes)) of guest memory\(percent)")
    if addressPath == .platform {
      line("translations", "\(iotlb.mappings) mappings; \(iotlb.hits) hits, \(iotlb.misses) misses, \(iotlb.updates) updates, \(iotlb.invalidations) invalidations")
    }
    line("faults", faults == 0 ? "0" : "\(faults): the driver gave addresses that it had not mapped, or not for this use")
    line("rings", "\(isPacked ? "packed" : "split"), \(queues.filter(\.isRunning).count) of \(queues.count) queues running")
    let total = totals
    line("requests", "\(total.requests) taken, \(total.completions) done; \(Self.bytes(total.readableBytes)) read from the guest, \(Self.bytes(total.writtenBytes)) written to it")
    if lostPages > 0 { line("lost pages", "\(lostPages): the front-end cut a memory file short") }
    if failedSessions > 0 { line("failures", "\(failedSessions) connections ended by an error") }
    return lines.joined(separator: "\n") + "\n"
  }

  /// One line of JSON, for programs. Keys stay; new ones may be added.
  public var json: String {
    var object = JSONObject()
    object.add("name", name)
    object.add("device", Self.kind(device))
    object.add("connected", isConnected)
    object.add("sessions", sessions)
    object.add("failed_sessions", failedSessions)
    object.add("access_platform_offered", offersAccessPlatform)
    object.add("access_platform_accepted", isAccepted)
    object.add("address_path", addressPath.map { $0 == .platform ? "platform" : "physical" })
    object.add("reason", reason)
    object.add("ring", isPacked ? "packed" : "split")
    object.add("offered_features", offeredFeatures.bits.map(String.init))
    object.add("negotiated_features", negotiatedFeatures.bits.map(String.init))
    object.add("protocol_features", (0..<64).filter { protocolFeatures.rawValue >> UInt64($0) & 1 == 1 }.map(String.init))
    object.add("status", UInt64(status))
    object.add("memory_bytes", memoryBytes)
    object.add("memory_regions", UInt64(memoryRegions))
    object.add("reachable_bytes", reachableBytes)
    object.add("peak_reachable_bytes", peakReachableBytes)
    object.add("mappings", UInt64(iotlb.mappings))
    object.add("hits", iotlb.hits)
    object.add("misses", iotlb.misses)
    object.add("questions", iotlb.questions)
    object.add("updates", iotlb.updates)
    object.add("invalidations", iotlb.invalidations)
    object.add("evictions", iotlb.evictions)
    object.add("faults", faults)
    object.add("lost_pages", lostPages)
    let total = totals
    object.add("requests", total.requests)
    object.add("completions", total.completions)
    object.add("readable_bytes", total.readableBytes)
    object.add("written_bytes", total.writtenBytes)
    object.add(
      "queues",
      queues.map { queue in
        var one = JSONObject()
        one.add("index", UInt64(queue.index))
        one.add("size", UInt64(queue.size))
        one.add("running", queue.isRunning)
        one.add("requests", queue.counts.requests)
        one.add("completions", queue.counts.completions)
        one.add("readable_bytes", queue.counts.readableBytes)
        one.add("written_bytes", queue.counts.writtenBytes)
        one.add("faults", queue.counts.faults)
        one.add("waits", queue.counts.waits)
        one.add("calls", queue.counts.calls)
        return one.text
      })
    return object.text + "\n"
  }

  /// Accesses refused, whichever path was in force.
  public var faults: UInt64 { queues.reduce(0) { $0 + $1.counts.faults } }

  private var isAccepted: Bool { addressPath == .platform }
  private var accepted: String {
    switch addressPath {
    case nil: "features not negotiated"
    case .platform: "accepted"
    case .physical: "not accepted"
    }
  }
  private var pathInWords: String {
    switch addressPath {
    case nil: "none yet"
    case .platform: "platform: addresses are translated, page by page, by what the front-end's IOMMU maps"
    case .physical: "physical: addresses are the guest's own, and no IOMMU is asked"
    }
  }
  private var percent: String {
    guard memoryBytes > 0 else { return "" }
    let tenths = (peakReachableBytes &* 1000) / memoryBytes
    return " (\(tenths / 10).\(tenths % 10) % at most)"
  }
  private var totals: QueueStatistics.Counts {
    var sum = QueueStatistics.Counts()
    for queue in queues {
      sum.requests += queue.counts.requests
      sum.completions += queue.counts.completions
      sum.readableBytes += queue.counts.readableBytes
      sum.writtenBytes += queue.counts.writtenBytes
    }
    return sum
  }

  private static func kind(_ id: DeviceID) -> String {
    switch id {
    case .block: "virtio-blk"
    case .entropy: "virtio-rng"
    case .network: "virtio-net"
    case .fileSystem: "virtio-fs"
    default: "virtio device \(id.rawValue)"
    }
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
