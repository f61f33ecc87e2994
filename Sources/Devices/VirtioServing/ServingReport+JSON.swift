internal import HostIO
public import Virtio

/// ``ServingReport`` for programs: what `sluice explain --json` prints.
extension ServingReport {
  /// The kind of device: `virtio-blk`, or `virtio device 17` where its number is all that is known.
  public var kind: String { device.name.map { "virtio-\($0)" } ?? "virtio device \(device.rawValue)" }

  /// Whether VIRTIO_F_ACCESS_PLATFORM was accepted.
  public var isAccepted: Bool { addressPath == .platform }

  /// What all queues have done together.
  public var totals: QueueStatistics.Counts {
    var sum = QueueStatistics.Counts()
    for queue in queues {
      sum.requests += queue.counts.requests
      sum.completions += queue.counts.completions
      sum.readableBytes += queue.counts.readableBytes
      sum.writtenBytes += queue.counts.writtenBytes
    }
    return sum
  }

  /// One line of JSON, for programs. Keys are in snake_case; they stay, and new ones may be added.
  public var json: String {
    var object = JSONObject()
    object.add("name", name)
    object.add("device", kind)
    for fact in facts {
      for (key, value) in fact.values.sorted(by: { $0.key < $1.key }) {
        switch value {
        case .text(let text): object.add(key, text)
        case .number(let number): object.add(key, number)
        case .flag(let flag): object.add(key, flag)
        }
      }
    }
    object.add("connected", isConnected)
    object.add("sessions", sessions)
    object.add("failed_sessions", failedSessions)
    object.add("last_failure", lastFailure)
    object.add("access_platform_policy", policy.rawValue)
    object.add("access_platform_offered", offersAccessPlatform)
    object.add("access_platform_accepted", isAccepted)
    object.add("address_path", addressPath.map { $0 == .platform ? "platform" : "physical" })
    object.add("reason", reason)
    object.add("ring", addressPath.map { _ in isPacked ? "packed" : "split" })
    object.add("indirect_offered", offersIndirect)
    object.add("indirect_accepted", acceptsIndirect)
    object.add("offered_features", offeredFeatures.bits.map(String.init))
    object.add("negotiated_features", negotiatedFeatures.bits.map(String.init))
    object.add(
      "protocol_features", protocolFeatures.map(String.init))
    object.add("status", UInt64(status))
    object.add("memory_bytes", memoryBytes)
    object.add("memory_regions", UInt64(memoryRegions))
    object.add("reachable_bytes", reachableBytes)
    object.add("peak_reachable_bytes", peakReachableBytes)
    object.add("grantable_bytes", grantableBytes)
    object.add("looks_like_pass_through", looksLikePassThrough)
    object.add("misses_invalidations", missesInvalidations)
    object.add("translations", translations.rawValue)
    object.add("mappings", UInt64(iotlb.mappings))
    object.add("hits", iotlb.hits)
    object.add("misses", iotlb.misses)
    object.add("questions", iotlb.questions)
    object.add("updates", iotlb.updates)
    object.add("invalidations", iotlb.invalidations)
    object.add("evictions", iotlb.evictions)
    object.add("identities", iotlb.identities)
    object.add("moved", iotlb.moved)
    object.add("faults", faults)
    object.add("last_fault", lastFault)
    object.add("warning", advice)
    object.add("lost_pages", lostPages)
    let total = totals
    object.add("requests", total.requests)
    object.add("completions", total.completions)
    object.add("readable_bytes", total.readableBytes)
    object.add("written_bytes", total.writtenBytes)
    object.add("queue_limit", UInt64(queueLimit))
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
}
