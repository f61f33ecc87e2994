import VirtioServing

// What `sluice explain` prints of a vfio-user client.
extension ServingReport {
  /// What the client maps, what follows from it, and what was refused.
  func describe(_ client: Client, on screen: inout ExplainScreen) {
    if otherKind == nil {
      screen.line("bit 33", "VIRTIO_F_ACCESS_PLATFORM: \(accepted)")
      screen.line("so", reason)
    } else {
      screen.line("bit 33", "not for this device: it is not virtio, and the IOMMU alone governs it")
    }
    screen.line("path", "the client's IOMMU: \(client.verdict)")
    screen.line(
      "mappings",
      "\(client.mappings) now, \(Self.bytes(client.mappedBytes)); \(client.maps) DMA_MAP and \(client.unmaps) DMA_UNMAP done"
        + (client.refusedMaps > 0 ? ", \(client.refusedMaps) DMA_MAP refused" : ""))
    screen.line(
      "reachable",
      "\(Self.bytes(reachableBytes)) now, \(Self.bytes(peakReachableBytes)) at most"
        + (client.mapsEverything ? "" : percent))
    screen.line(
      "memory",
      "\(Self.bytes(client.fileBytes)) in \(counted(client.files, "file")) with a descriptor; "
        + (client.mappingsWithoutDescriptor == 0
          ? "none without"
          : "\(counted(client.mappingsWithoutDescriptor, "mapping")) of \(Self.bytes(client.bytesWithoutDescriptor)) "
            + "without: \(client.accessesByMessage) accesses by message, \(client.refusedByClient) refused by the client")
    )
    screen.line(
      "faults",
      client.refusals == 0 ? "0" : "\(counted(client.refusals, "access was", "accesses were")) refused; the last:")
    for refusal in client.lastRefusals { screen.line("", refusal) }
    screen.line(
      "interrupts",
      "\(client.interrupts) sent"
        + (client.lostInterrupts > 0 ? ", \(client.lostInterrupts) dropped that the client took no eventfd for" : "")
        + "; eventfds: \(client.connectedVectors) of \(counted(client.vectors, "MSI-X vector"))"
        + (client.isPinConnected ? ", the pin" : ""))
    screen.line(
      "doorbells",
      client.sharesDoorbells ? "in memory shared with the client: \(client.doorbells) taken" : "a message each")
  }
}
