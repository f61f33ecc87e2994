import DMA
import DeviceCatalog
import DriverDMA
import Virtio
import VirtioDrivers

extension Cell {
  /// Makes a machine, drives the device, and compares what comes of it with the truth table.
  ///
  /// - Parameter platform: what the machine is made from; nil: the decision's.
  func run(on platform: Platform? = nil) -> CellResult {
    var run = CellRun(cell: self, platform: platform ?? decision.platform)
    let verdict = run.verdict()
    return CellResult(cell: self, verdict: verdict, story: run.story)
  }
}

/// One cell, and what happened so far, a line each.
private struct CellRun {
  let cell: Cell
  let platform: Platform
  private(set) var story: [String] = []
  /// Devices do not keep their machine.
  private var machine: RunningMachine?

  private typealias Verdict = CellResult.Verdict
  private var decision: Decision { cell.decision }

  init(cell: Cell, platform: Platform) {
    self.cell = cell
    self.platform = platform
  }

  mutating func verdict() -> CellResult.Verdict {
    do throws(MachineError) {
      switch cell.expected {
      case .impossible(let why): return .skipped(why)
      case .refusedAtCreation: return try checkCreation()
      case .refusedByDriver: return try checkDriver()
      case .refusedByDevice: return try checkDevice()
      case .data, .fault, .oneWay: return try checkData()
      }
    } catch {
      return .failed("\(error)")
    }
  }

  private var description: DeviceDescription {
    var description = DeviceDescription(name: decision.device.rawValue, kind: decision.device)
    description.interface = decision.interface
    description.property = decision.property
    description.host = decision.host
    description.acknowledgement = decision.acknowledgement
    description.state = decision.state
    description.byteCount = 1 << 20
    if let data = cell.data {
      description.ring = data.ring ?? .split
      description.descriptors = data.descriptors
    }
    return description
  }

  /// The device in a machine that has booted.
  private mutating func boot() throws(MachineError) -> PluggedDevice {
    let machine = try RunningMachine(platform)
    self.machine = machine
    let device = try machine.plug(description)
    story += device.reasons
    try machine.boot()
    return device
  }

  // MARK: Refusals

  private mutating func checkCreation() throws(MachineError) -> Verdict {
    let machine = try RunningMachine(platform)
    do throws(MachineError) {
      _ = try machine.plug(description)
    } catch .configuration(let error) {
      story.append("the device is not made: \(error)")
      return .passed
    }
    return .failed("the device was made, with a legacy interface and bit 33")
  }

  private mutating func checkDriver() throws(MachineError) -> Verdict {
    let device = try boot()
    do throws(MachineError) {
      _ = try device.startDriver()
    } catch .driver(.restricted(let missing)) {
      story.append("the driver refuses the device, which lacks \(Self.named(missing))")
      return checkUnused(device)
    }
    return .failed("the driver took a device that ignores what was shared with it")
  }

  private mutating func checkDevice() throws(MachineError) -> Verdict {
    let device = try boot()
    _ = try device.machine.setState(decision.state, of: device.requester)
    let (transport, _) = try device.connect()
    let withheld: Features = decision.acknowledgement == .neither ? [.version1, .accessPlatform] : [.accessPlatform]
    transport.status = []
    transport.status = .acknowledge
    transport.status = [.acknowledge, .driver]
    let offeredFeatures = transport.deviceFeatures
    guard offeredFeatures.contains(.accessPlatform) == decision.offersPlatform else {
      return .failed("bit 33 is\(decision.offersPlatform ? " not" : "") offered")
    }
    transport.accept(offeredFeatures.subtracting(withheld))
    transport.status = [.acknowledge, .driver, .featuresOK]
    guard !transport.status.contains(.featuresOK) else {
      return .failed("FEATURES_OK sticks without \(Self.named(withheld))")
    }
    story.append("FEATURES_OK does not stick without \(Self.named(withheld))")
    Self.goOnAllTheSame(transport)
    return checkUnused(device)
  }

  /// What a driver does that does not look whether FEATURES_OK stuck: it gets nothing.
  private static func goOnAllTheSame(_ transport: any DriverTransport) {
    let at = MemoryPlan.buffers
    transport.enableQueue(
      0,
      QueueLayout(
        size: 8, descriptorArea: DMAAddress(at), driverArea: DMAAddress(at + 4096), deviceArea: DMAAddress(at + 8192)))
    transport.status = [.acknowledge, .driver, .driverOK]
    transport.notify(0, data: 0)
    transport.status = []
  }

  private static func named(_ features: Features) -> String {
    let bits = features.bits.map(String.init)
    return "feature bit\(bits.count == 1 ? "" : "s") \(bits.joined(separator: " and "))"
  }

  private mutating func checkUnused(_ device: PluggedDevice) -> Verdict {
    let counts = device.counts
    guard !counts.platform.isUsed, !counts.physical.isUsed else {
      return .failed("the device accessed memory: \(counts)")
    }
    story.append("the device accessed no memory")
    return .passed
  }

  // MARK: Data

  private mutating func checkData() throws(MachineError) -> Verdict {
    let device = try boot()
    let verdict: Verdict
    if decision.reachesMemory {
      let driver = try device.startDriver()
      verdict = checkTransfers(CellRig(device: device, driver: driver))
      try driver.stop()
    } else {
      if decision.interface.isLegacy { device.machine.patience = 200 }
      verdict = checkUnreachable(device)
    }
    device.reset()
    let path = checkPath(device)
    return verdict == .passed ? path : verdict
  }

  /// Requests from and to memory, as far as the device has both.
  private mutating func checkTransfers(_ rig: CellRig) -> Verdict {
    guard let data = cell.data else { return .failed("no data") }
    let buffer = ShapedBuffer(
      data.shape, on: decision.platform, usesPlatform: decision.usesPlatformMapper, in: rig.driver.domain)
    rig.driver.mapper.buffer = buffer.segments.first?.address
    rig.driver.mapper.plan = buffer.plan
    defer { rig.driver.mapper.buffer = nil }
    let ways: [CellOutcome.Direction] = decision.device.isStorage ? [.fromMemory, .toMemory] : [.toMemory]
    for way in ways {
      let transfer = CellTransfer(cell, way, buffer, on: rig)
      let verdict = transfer.verdict(story: &story)
      guard verdict == .passed else { return verdict }
    }
    return .passed
  }

  /// Nothing leads to memory: the driver cannot even start, or its first request fails.
  private mutating func checkUnreachable(_ device: PluggedDevice) -> Verdict {
    do throws(MachineError) {
      let driver = try device.startDriver()
      let buffer = ShapedBuffer(.contiguous, on: decision.platform, usesPlatform: true, in: nil)
      try driver.request(.toMemory, buffer)
      return .failed("a request succeeded though nothing is reachable")
    } catch {
      story.append("the driver cannot go on: \(error)")
      // The legacy interface has no DEVICE_NEEDS_RESET: there a driver can only wait in vain.
      if case .driver(.timeout) = error, !decision.interface.isLegacy {
        return .failed("the device neither works nor says that it does not")
      }
      return device.counts.platform.faults > 0 ? .passed : .failed("no fault was recorded, but: \(error)")
    }
  }

  /// The path that was recorded is the table's, and no other.
  private mutating func checkPath(_ device: PluggedDevice) -> Verdict {
    let counts = device.counts
    let sentence =
      "at the spaces: platform \(counts.platform.hits) hits, \(counts.platform.misses) misses, \(counts.platform.faults) faults;"
      + " physical \(counts.physical.hits) hits, \(counts.physical.misses) misses, \(counts.physical.faults) faults"
    story.append(sentence)
    let (used, other) =
      decision.path == .platform ? (counts.platform, counts.physical) : (counts.physical, counts.platform)
    guard used.isUsed, !other.isUsed else {
      return .failed("the device's accesses took another path than \(decision.path.rawValue): \(sentence)")
    }
    return .passed
  }
}
