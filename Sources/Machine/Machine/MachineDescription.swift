import DeviceCatalog
import Virtio

/// A machine and what its guest does: what `sluice machine run` reads from a file.
public struct MachineDescription: Hashable, Sendable {
  public var platform: Platform
  public var devices: [DeviceDescription]
  public var workload: Workload

  public init(platform: Platform, devices: [DeviceDescription], workload: Workload = Workload()) {
    self.platform = platform
    self.devices = devices
    self.workload = workload
  }

  /// The default machine, without a file: VT-d, a disk that goes through it, one that bypasses it, and a device of
  /// each other kind.
  public static var embedded: MachineDescription {
    var disk = DeviceDescription(name: "disk", kind: .block)
    (disk.property, disk.state, disk.ring) = (.on, .attached, .packed)
    var old = DeviceDescription(name: "old-disk", kind: .block)
    (old.host, old.interface, old.acknowledgement, old.state) = (.old, .legacy, .legacy, .unattached)
    let others = DeviceKind.inMachines.filter { $0 != .block }.map { kind in
      var other = DeviceDescription(name: kind.rawValue, kind: kind)
      (other.property, other.state) = (kind.isVirtio ? .on : .off, .attached)
      return other
    }
    var workload = Workload()
    workload.kind = .churn
    workload.requests = 500
    workload.seconds = 0.3
    return MachineDescription(platform: .pcVTd, devices: [disk, old] + others, workload: workload)
  }

  /// Makes the machine, runs the workload on each device after the other, and reports on each.
  ///
  /// - Throws: ``MachineError`` when there can be no such machine; what goes wrong with a device's requests is in its
  ///   report.
  public func run() throws(MachineError) -> [DeviceReport] {
    let machine = try RunningMachine(platform)
    var plugged: [PluggedDevice] = []
    for device in devices { plugged.append(try machine.plug(device)) }
    try machine.boot()
    var reports: [DeviceReport] = []
    for device in plugged {
      let driver = try device.startDriver()
      let work = WorkloadRun.run(workload, device, driver, on: machine.guest)
      var error: String?
      do throws(MachineError) { try driver.stop() } catch let thrown { error = "\(thrown)" }
      device.reset()
      reports.append(DeviceReport(device, driver, work, stopping: error))
    }
    return reports
  }
}

/// What became of a device of a machine.
public struct DeviceReport: Sendable {
  public let description: DeviceDescription
  /// The choices that its options led to.
  public let reasons: [String]
  /// Whether bit 33 was negotiated; nil for what is not virtio.
  public let isPlatformNegotiated: Bool?
  /// The path that its accesses took.
  public let path: PathTaken?
  public let platform: SpaceCounts
  public let physical: SpaceCounts
  public var work: WorkloadReport

  init(_ device: PluggedDevice, _ driver: GuestDriver, _ work: WorkloadReport, stopping error: String?) {
    description = device.description
    reasons = device.reasons
    isPlatformNegotiated = driver.features.map { AddressPath(negotiated: $0) == .platform }
    let counts = device.counts
    (platform, physical) = (counts.platform, counts.physical)
    path = counts.platform.isUsed ? .platform : counts.physical.isUsed ? .physical : nil
    self.work = work
    if self.work.error == nil { self.work.error = error }
  }

  /// Nothing went wrong.
  public var isGood: Bool { work.error == nil && work.wrongBytes == 0 && work.requests > 0 }
}
