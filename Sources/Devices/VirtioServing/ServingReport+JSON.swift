internal import HostIO
public import Virtio

/// ``ServingReport`` for programs: what `sluice explain --json` prints.
extension ServingReport {
  /// The kind of device: `virtio-blk`, or `virtio device 17` where its number is all that is known.
  public var kind: String { otherKind ?? device.name.map { "virtio-\($0)" } ?? "virtio device \(device.rawValue)" }

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
    object.add("protocol", client == nil ? "vhost-user" : "vfio-user")
    for fact in facts { Self.add(fact.values, to: &object) }
    object.add("connected", isConnected)
    object.add("sessions", sessions)
    object.add("failed_sessions", failedSessions)
    object.add("last_failure", lastFailure)
    if otherKind == nil { addNegotiation(to: &object) }
    object.add("memory_bytes", memoryBytes)
    object.add("memory_regions", UInt64(memoryRegions))
    object.add("reachable_bytes", reachableBytes)
    object.add("peak_reachable_bytes", peakReachableBytes)
    object.add("grantable_bytes", grantableBytes)
    object.add("looks_like_pass_through", looksLikePassThrough)
    object.add("misses_invalidations", missesInvalidations)
    if let client { add(client, to: &object) } else { addTranslations(to: &object) }
    object.add("faults", faults)
    object.add("last_fault", lastFault)
    object.add("warning", advice)
    object.add("lost_pages", lostPages)
    if otherKind == nil { addQueues(to: &object) }
    return object.text + "\n"
  }

  private static func add(_ values: [String: ReportFact.Value], to object: inout JSONObject) {
    for (key, value) in values.sorted(by: { $0.key < $1.key }) {
      switch value {
      case .text(let text): object.add(key, text)
      case .number(let number): object.add(key, number)
      case .flag(let flag): object.add(key, flag)
      case .list(let list):
        object.add(
          key,
          list.map { values in
            var one = JSONObject()
            add(values, to: &one)
            return one.text
          })
      }
    }
  }

  /// Features, and what follows from them.
  private func addNegotiation(to object: inout JSONObject) {
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
  }

  /// The translations of a vhost-user connection.
  private func addTranslations(to object: inout JSONObject) {
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
  }

  /// Virtqueues.
  private func addQueues(to object: inout JSONObject) {
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
  }

  /// The mappings and interrupts of a vfio-user connection.
  private func add(_ client: Client, to object: inout JSONObject) {
    object.add("verdict", client.verdict)
    object.add("mappings", UInt64(client.mappings))
    object.add("mapped_bytes", client.mappedBytes)
    object.add("peak_mapped_bytes", client.peakMappedBytes)
    object.add("mappings_without_descriptor", UInt64(client.mappingsWithoutDescriptor))
    object.add("bytes_without_descriptor", client.bytesWithoutDescriptor)
    object.add("accesses_by_message", client.accessesByMessage)
    object.add("accesses_refused_by_client", client.refusedByClient)
    object.add("maps", client.maps)
    object.add("refused_maps", client.refusedMaps)
    object.add("unmaps", client.unmaps)
    object.add("last_faults", client.lastRefusals.map(JSONObject.quoted))
    object.add("vectors", UInt64(client.vectors))
    object.add("connected_vectors", UInt64(client.connectedVectors))
    object.add("pin_connected", client.isPinConnected)
    object.add("interrupts", client.interrupts)
    object.add("lost_interrupts", client.lostInterrupts)
    object.add("shared_doorbells", client.sharesDoorbells)
    object.add("doorbells", client.doorbells)
  }
}
