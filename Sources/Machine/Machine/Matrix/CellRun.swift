import DMA
import Virtio
import VirtioDrivers

/// Runs the cells of one decision that share a ring: makes the machine, drives the device, and compares the outcome
/// with the truth table.
struct CellRun {
  private struct Failure: Error {
    var why: String
    init(_ why: String) { self.why = why }
  }
  private let decision: Decision
  private let platform: Platform
  private var story: [String] = []

  /// - Parameters:
  ///   - cells: of one decision, with one ring and one kind of descriptors.
  ///   - platform: what machines are made from; nil: the decision's.
  static func run(_ cells: [Cell], on platform: Platform? = nil) -> [CellResult] {
    guard let first = cells.first else { return [] }
    var run = CellRun(decision: first.decision, platform: platform ?? first.decision.platform)
    return run.results(cells)
  }

  private init(decision: Decision, platform: Platform) {
    self.decision = decision
    self.platform = platform
  }

  private mutating func results(_ cells: [Cell]) -> [CellResult] {
    guard let refusal = decision.refusal else { return dataResults(cells) }
    if case .impossible(let why) = refusal {
      return cells.map { CellResult(cell: $0, verdict: .skipped(why), story: []) }
    }
    var verdict = CellResult.Verdict.passed
    do {
      switch refusal {
      case .refusedAtCreation: try checkCreation()
      case .refusedByDriver: try checkDriver()
      default: try checkDevice()
      }
    } catch let failure as Failure {
      verdict = .failed(failure.why)
    } catch {
      verdict = .failed("\(error)")
    }
    return cells.map { CellResult(cell: $0, verdict: verdict, story: story) }
  }

  private var description: DeviceDescription {
    var description = DeviceDescription(name: decision.device.rawValue, kind: decision.device)
    description.interface = decision.interface
    description.property = decision.property
    description.host = decision.host
    description.acknowledgement = decision.acknowledgement
    description.state = decision.state
    description.byteCount = 1 << 20
    return description
  }

  // MARK: Refusals

  private mutating func checkCreation() throws {
    let machine = try RunningMachine(platform)
    do {
      _ = try machine.plug(description)
    } catch MachineError.configuration(let error) {
      story.append("the device is not made: \(error)")
      return
    }
    throw Failure("the device was made, with a legacy interface and bit 33")
  }

  private mutating func checkDriver() throws {
    let machine = try RunningMachine(platform)
    let device = try machine.plug(description)
    story += device.reasons
    try machine.boot()
    do {
      _ = try device.startDriver()
    } catch MachineError.driver(.restricted(let missing)) {
      story.append("the driver refuses the device, which lacks \(Self.named(missing))")
      try checkUnused(device)
      return
    }
    throw Failure("the driver took a device that ignores what was shared with it")
  }

  private mutating func checkDevice() throws {
    let machine = try RunningMachine(platform)
    let device = try machine.plug(description)
    story += device.reasons
    try machine.boot()
    _ = try machine.setState(decision.state, of: device.requester)
    let (transport, _) = try device.connect()
    let withheld: Features = decision.acknowledgement == .neither ? [.version1, .accessPlatform] : [.accessPlatform]
    transport.status = []
    transport.status = .acknowledge
    transport.status = [.acknowledge, .driver]
    let offeredFeatures = transport.deviceFeatures
    guard offeredFeatures.contains(.accessPlatform) == decision.offersPlatform else {
      throw Failure("bit 33 is\(decision.offersPlatform ? " not" : "") offered")
    }
    transport.accept(offeredFeatures.subtracting(withheld))
    transport.status = [.acknowledge, .driver, .featuresOK]
    guard !transport.status.contains(.featuresOK) else {
      throw Failure("FEATURES_OK sticks without \(Self.named(withheld))")
    }
    story.append("FEATURES_OK does not stay set without \(Self.named(withheld))")
    // A driver that goes on all the same gets nothing.
    let at = MemoryPlan.buffers
    transport.enableQueue(
      0,
      QueueLayout(
        size: 8, descriptorArea: DMAAddress(at), driverArea: DMAAddress(at + 4096), deviceArea: DMAAddress(at + 8192)))
    transport.status = [.acknowledge, .driver, .driverOK]
    transport.notify(0, data: 0)
    transport.status = []
    try checkUnused(device)
  }

  private static func named(_ features: Features) -> String {
    let bits = features.bits.map(String.init)
    return "feature bit\(bits.count == 1 ? "" : "s") \(bits.joined(separator: " and "))"
  }

  private mutating func checkUnused(_ device: PluggedDevice) throws {
    let counts = device.counts
    guard !counts.platform.isUsed, !counts.physical.isUsed else {
      throw Failure("the device accessed memory: \(counts)")
    }
    story.append("the device accessed no memory")
  }

  // MARK: Data

  private mutating func dataResults(_ cells: [Cell]) -> [CellResult] {
    var results: [CellResult] = []
    var running: [Cell] = []
    for cell in cells {
      if case .impossible(let why) = cell.expected {
        results.append(CellResult(cell: cell, verdict: .skipped(why), story: []))
      } else {
        running.append(cell)
      }
    }
    guard let axes = running.first?.data else { return results }
    var made: [CellResult] = []
    do {
      let machine = try RunningMachine(platform)
      var description = description
      description.ring = axes.ring ?? .split
      description.descriptors = axes.descriptors
      let device = try machine.plug(description)
      story += device.reasons
      try machine.boot()
      if !decision.reachesMemory, decision.interface.isLegacy { machine.patience = 200 }
      let common = story
      if decision.reachesMemory {
        let driver = try device.startDriver()
        for cell in running {
          story = common
          let verdict = check(cell, device, driver, machine)
          made.append(CellResult(cell: cell, verdict: verdict, story: story))
        }
        try driver.stop()
      } else {
        made = running.map { CellResult(cell: $0, verdict: .passed, story: []) }
        let verdict = checkUnreachable(device)
        for i in made.indices {
          made[i].verdict = verdict
          made[i].story = story
        }
      }
      device.reset()
      let path = checkPath(device)
      for i in made.indices {
        made[i].story.append(path.sentence)
        if let why = path.failure, made[i].verdict == .passed { made[i].verdict = .failed(why) }
      }
    } catch {
      made = running.map { CellResult(cell: $0, verdict: .failed("\(error)"), story: story) }
    }
    return results + made
  }

  /// The path that was recorded, and what is wrong with it.
  private func checkPath(_ device: PluggedDevice) -> (sentence: String, failure: String?) {
    let counts = device.counts
    let sentence =
      "at the spaces: platform \(counts.platform.hits) hits, \(counts.platform.misses) misses, \(counts.platform.faults) faults;"
      + " physical \(counts.physical.hits) hits, \(counts.physical.misses) misses, \(counts.physical.faults) faults"
    let (used, other) =
      decision.path == .platform ? (counts.platform, counts.physical) : (counts.physical, counts.platform)
    let isRight = used.isUsed && !other.isUsed
    return (
      sentence, isRight ? nil : "the device's accesses took another path than \(decision.path.rawValue): \(sentence)"
    )
  }

  /// Nothing leads to memory: the driver cannot even start, or its first request fails.
  private mutating func checkUnreachable(_ device: PluggedDevice) -> CellResult.Verdict {
    do throws(MachineError) {
      let driver = try device.startDriver()
      let buffer = ShapedBuffer(.contiguous, on: decision.platform, usesPlatform: true, in: nil)
      try request(toMemory: true, buffer, driver)
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

  private mutating func request(toMemory: Bool, _ buffer: ShapedBuffer, _ driver: GuestDriver) throws(MachineError) {
    switch driver.driver {
    case .disk(let disk):
      if toMemory { try disk.read(8, into: buffer.segments) } else { try disk.write(8, from: buffer.segments) }
    case .entropy(let driver):
      do throws(DriverError) {
        let count = try driver.fill(buffer.segments.span)
        guard count == buffer.byteCount else {
          throw .incomplete(written: UInt32(count), needed: UInt64(buffer.byteCount))
        }
      } catch { throw .driver(error) }
    }
  }

  private mutating func check(
    _ cell: Cell, _ device: PluggedDevice, _ driver: GuestDriver, _ machine: RunningMachine
  ) -> CellResult.Verdict {
    guard let data = cell.data else { return .failed("no data") }
    let buffer = ShapedBuffer(
      data.shape, on: decision.platform, usesPlatform: decision.usesPlatformMapper, in: driver.domain)
    driver.mapper.buffer = buffer.segments.first?.address
    driver.mapper.plan = buffer.plan
    defer { driver.mapper.buffer = nil }
    let (isReadable, isWritable) =
      switch cell.expected {
      case .data: (true, true)
      case .oneWay(_, .fromMemory): (true, false)
      case .oneWay(_, .toMemory): (false, true)
      default: (false, false)
      }
    if decision.device != .entropy, let why = check(toMemory: false, isReadable, buffer, device, driver, machine) {
      return .failed(why)
    }
    if let why = check(toMemory: true, isWritable, buffer, device, driver, machine) { return .failed(why) }
    return .passed
  }

  /// One request, one way; what is wrong with it.
  private mutating func check(
    toMemory: Bool, _ mayWork: Bool, _ buffer: ShapedBuffer, _ device: PluggedDevice, _ driver: GuestDriver,
    _ machine: RunningMachine
  ) -> String? {
    let memory = machine.guest.memory
    let way = toMemory ? "to memory" : "from memory"
    let pattern = (0..<buffer.byteCount).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8 &+ (toMemory ? 3 : 1)) }
    let empty = [UInt8](repeating: 0, count: buffer.byteCount)
    buffer.fill(0xEE, in: memory)
    let before = buffer.bytes(in: memory)
    if toMemory {
      device.setContents(pattern)
    } else {
      device.setContents(empty)
      buffer.put(pattern, in: memory)
    }
    let path = decision.path
    func faults() -> UInt64 { path == .platform ? device.counts.platform.faults : device.counts.physical.faults }
    let faultsBefore = faults()
    do throws(MachineError) {
      try request(toMemory: toMemory, buffer, driver)
    } catch {
      story.append("\(way): \(error)")
      if mayWork { return "\(way): \(error)" }
      if case .driver(.timeout) = error { return "\(way): no answer" }
      if toMemory ? buffer.bytes(in: memory) != before : device.contents(buffer.byteCount) != empty {
        return "\(way): bytes moved in spite of the fault"
      }
      return faults() > faultsBefore ? nil : "\(way): refused, but no fault was recorded on the \(path.rawValue) path"
    }
    guard mayWork else { return "\(way): succeeded though it must not" }
    story.append("\(way): \(buffer.byteCount) bytes arrived")
    if !toMemory {
      return device.contents(buffer.byteCount) == pattern ? nil : "\(way): the bytes on the disk are others"
    }
    guard buffer.isGuarded(by: 0xEE, in: memory) else { return "\(way): bytes beside the buffer changed" }
    let after = buffer.bytes(in: memory)
    if decision.device != .entropy { return after == pattern ? nil : "\(way): the bytes in memory are others" }
    // Random bytes have any values, but not 64 equal ones in a row.
    let isStale = stride(from: 0, to: after.count, by: 64).contains {
      after[$0..<min($0 + 64, after.count)].allSatisfy { $0 == 0xEE }
    }
    return isStale ? "\(way): a part was not filled" : nil
  }
}

extension PluggedDevice {
  /// Where requests of cells go on the disk: sector 8.
  private static let place = 8 * 512

  func setContents(_ bytes: [UInt8]) { _ = contents?.copy(bytes.span, to: Self.place) }

  func contents(_ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    _ = contents?.copy(from: Self.place, into: &span)
    return bytes
  }
}
