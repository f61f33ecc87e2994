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
      "\(client.mappings) now, \(Self.bytes(client.reachableBytes)); \(client.maps) DMA_MAP and \(client.unmaps) DMA_UNMAP done"
        + (client.refusedMaps > 0 ? ", \(client.refusedMaps) DMA_MAP refused" : ""))
    screen.line(
      "reachable",
      "\(Self.bytes(reachableBytes)) now, \(Self.bytes(peakReachableBytes)) at most"
        + (client.mapsEverything || client.mappingsWithoutDescriptor > 0 ? "" : percent))
    screen.line(
      "memory",
      "\(Self.bytes(client.fileBytes)) in \(counted(client.files, "file")) with a descriptor; "
        + (client.mappingsWithoutDescriptor == 0
          ? "none without"
          : "\(counted(client.mappingsWithoutDescriptor, "mapping")) of \(Self.bytes(client.bytesWithoutDescriptor)) without")
        + (client.accessesByMessage == 0
          ? ""
          : "; \(counted(client.accessesByMessage, "access", "accesses")) by message since the server started, "
            + "\(client.refusedByClient) refused or not answered"))
    screen.line(
      "faults",
      client.refusals == 0
        ? "0 since the server started"
        : "\(counted(client.refusals, "access was", "accesses were")) refused since the server started; the last:")
    for refusal in client.lastRefusals { screen.line("", refusal) }
    screen.line(
      "interrupts",
      "\(client.interrupts) sent since the server started"
        + (client.lostInterrupts > 0 ? ", \(client.lostInterrupts) dropped that the client took no eventfd for" : "")
        + "; eventfds: \(client.connectedVectors) of \(counted(client.vectors, "MSI-X vector"))"
        + (client.isPinConnected ? ", the pin" : ""))
    screen.line("doorbells", Self.doorbells(client, isConnected))
  }

  private static func doorbells(_ client: Client, _ isConnected: Bool) -> String {
    if client.sharesDoorbells { return "in memory shared with the client: \(client.doorbells) taken" }
    guard client.offersSharedDoorbells else { return "a message each" }
    return isConnected
      ? "a message each: the client has not asked for the memory that it could share"
      : "in shared memory if the client asks for it, else a message each: its choice"
  }
}
