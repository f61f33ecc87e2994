internal import Virtio
public import VirtioServing

/// What a function knows of itself for `sluice explain`.
extension VirtioPCIFunction {
  /// Enters what was offered and negotiated, and what the queues do. From any thread.
  public func describe(in report: inout ServingReport) {
    let status = control.status
    let negotiated = control.negotiatedFeatures
    let isSettled = status.contains(.featuresOK) || control.isLegacy && status.contains(.driverOK)
    report.device = control.device.id
    report.offeredFeatures = control.offeredFeatures
    report.negotiatedFeatures = negotiated
    report.addressPath = isSettled ? AddressPath(negotiated: negotiated) : nil
    report.status = status.rawValue
    report.reason = control.refusal.map { "the driver was refused: \($0)" } ?? consequence(report.addressPath)
    report.queueLimit = control.queueCount
    let counts = control.counts
    let used = (0..<control.queueCount).last { control.queue($0)?.isEnabled == true || counts[$0].requests > 0 } ?? -1
    report.queues = (0..<used + 1).map { index in
      var queue = ServingReport.Queue(index: index, size: control.queue(index)?.size ?? 0)
      queue.isRunning = control.isRunning(index)
      queue.counts = counts[index]
      return queue
    }
    let interface = control.isLegacy ? "legacy, in use" : choices.interface.rawValue
    report.facts.append(
      ReportFact(
        "interface", "\(interface); \(choices.reasons.joined(separator: "; "))",
        ["interface": .text(choices.interface.rawValue), "legacy_driver": .flag(control.isLegacy)]))
  }

  /// What the driver's choice means for its addresses.
  private func consequence(_ path: AddressPath?) -> String {
    switch path {
    case nil: "features are not negotiated yet"
    case .platform:
      "the driver accepted VIRTIO_F_ACCESS_PLATFORM: its addresses are those that its platform's DMA API gives it, "
        + (isIOMMUElsewhere
          ? "and the client's IOMMU, if it has one, decides where they lead"
          : "which an IOMMU in front of the device has mapped")
    case .physical:
      (choices.offersAccessPlatform
        ? "the driver did not accept VIRTIO_F_ACCESS_PLATFORM" : "VIRTIO_F_ACCESS_PLATFORM is not offered")
        + (isHardware
          ? ": the driver's addresses are guest-physical, and go through "
            + "\(isIOMMUElsewhere ? "the client's IOMMU, if it has one," : "the IOMMU") all the same; behind one that is "
            + "in use they are refused"
          : ": the driver's addresses are guest-physical")
    }
  }
}
