import DMA
import MachineKit
import Testing
import Virtio
import VirtioTestKit

/// One session of a device, from reset to reset: where its queue and its buffers are, each alone on its page.
final class Session {
  let target: Target
  let features: Features
  let layout: QueueLayout
  var ring: any LiteralRing
  /// The event queue of a virtio-iommu.
  let eventLayout: QueueLayout
  let events: (any LiteralRing)?
  /// A page each, with unused pages around it.
  let header: DMAAddress
  let data: DMAAddress
  let status: DMAAddress
  let table: DMAAddress
  /// A page that the device is never given.
  let foreign: DMAAddress
  /// Where a virtio-iommu reports a fault.
  let report: DMAAddress
  private(set) var round: UInt8 = 0
  /// Queues given up in earlier sessions.
  private let stoppedBefore: Int

  static let firstBase: UInt64 = 0x2_0000
  static let secondBase: UInt64 = 0x8_0000

  /// What a well-behaved driver accepts of this device.
  static func features(_ target: Target, adding extra: Features = [], leavingOut left: Features = []) -> Features {
    var wanted: Features =
      target.kind == .iommu
      ? [.version1, .iommuInputRange, .iommuDomainRange, .iommuMapUnmap, .iommuProbe, .iommuMMIO, .iommuBypassConfig]
      : [.version1, .blockFlush, .blockDiscard, .blockWriteZeroes, .blockConfigWCE, .accessPlatform]
    if target.transport.isPacked { wanted.insert(.ringPacked) }
    return target.driver.deviceFeatures.intersection(wanted.union(extra)).subtracting(left)
  }

  /// A queue that exists in memory only, so far.
  init(_ target: Target, _ features: Features, at base: UInt64 = firstBase) {
    self.target = target
    self.features = features
    stoppedBefore = target.stopped
    if target.transport.isLegacy {
      layout = QueueLayout(legacyAt: base, size: target.driver.maxQueueSize(0))
    } else {
      layout = QueueLayout(
        size: 16, descriptorArea: DMAAddress(base + 0x1000), driverArea: DMAAddress(base + 0x3000),
        deviceArea: DMAAddress(base + 0x5000))
    }
    ring = makeLiteralRing(layout, features: features, in: target.literal)
    eventLayout = QueueLayout(
      size: 16, descriptorArea: DMAAddress(base + 0x7000), driverArea: DMAAddress(base + 0x9000),
      deviceArea: DMAAddress(base + 0xb000))
    events = target.kind == .iommu ? makeLiteralRing(eventLayout, features: features, in: target.literal) : nil
    let buffers = DMAAddress(base + 0x1_0000)
    header = buffers + 0x1000
    data = buffers + 0x3000
    status = buffers + 0x6000
    table = buffers + 0x8000
    foreign = buffers + 0xa000
    report = buffers + 0xc000
    for layout in events == nil ? [layout] : [layout, eventLayout] {
      let bytes = layout.byteCounts(packed: target.transport.isPacked, eventIndex: features.contains(.eventIndex))
      target.allow(layout.deviceArea, bytes.device)
      if target.transport.isPacked { target.allow(layout.descriptorArea, bytes.descriptor) }
    }
  }

  var split: LiteralSplitRing { get throws { try #require(ring as? LiteralSplitRing) } }
  var packed: LiteralPackedRing { get throws { try #require(ring as? LiteralPackedRing) } }

  /// A packed ring whose first slots were filled by hand, and used, goes on behind them.
  func goOn(atSlot slot: Int) {
    ring = LiteralPackedRing(layout, eventIndex: features.contains(.eventIndex), startingAt: slot, in: target.literal)
  }

  // MARK: Steps of §3.1.1

  /// A correct initialization up to the point where the device is live.
  func begin() throws {
    try negotiate()
    enable()
    goLive()
  }

  func negotiate() throws {
    let driver = target.driver
    try target.reset()
    driver.status = [.acknowledge]
    driver.status = [.acknowledge, .driver]
    driver.accept(features)
    guard !target.transport.isLegacy else { return }
    driver.status = [.acknowledge, .driver, .featuresOK]
    guard driver.status.contains(.featuresOK) else { throw Wedged("the device refuses features that are right") }
  }

  func enable() {
    target.driver.enableQueue(0, layout)
    if events != nil { target.driver.enableQueue(1, eventLayout) }
  }

  func goLive() {
    target.driver.status =
      target.transport.isLegacy ? [.acknowledge, .driver, .driverOK] : [.acknowledge, .driver, .featuresOK, .driverOK]
  }

  func notify() { target.driver.notify(0, data: 0) }

  // MARK: Requests

  /// What the device did about what it was shown.
  enum Answer {
    case used([LiteralUsed])
    /// It gave the queue up, and says so: DEVICE_NEEDS_RESET, or for drivers that know no such bit the log.
    case stopped
    case nothing
  }

  /// Waits for the device's answer.
  func answer() -> Answer {
    var used: [LiteralUsed] = []
    var stopped = false
    let driver = target.driver
    _ = target.interrupts.poll {
      used += ring.takeUsed()
      stopped = driver.status.contains(.needsReset) || target.transport.isLegacy && target.stopped > stoppedBefore
      return stopped || !used.isEmpty
    }
    return stopped ? .stopped : used.isEmpty ? .nothing : .used(used)
  }

  /// Writes a block request's header (§5.2.6) and an invalid status.
  func writeHeader(_ type: UInt32, sector: UInt64) {
    target.literal.write(le32: type, at: header)
    target.literal.write(le32: 0, at: header + 4)
    target.literal.write(le64: sector, at: header + 8)
    target.literal.write([0xff], at: status)
    target.allow(status, 1)
  }

  /// Posts a block request whose data are at ``data``.
  @discardableResult
  func post(_ type: UInt32, sector: UInt64 = 0, data pieces: [LiteralDescriptor], table: DMAAddress? = nil) -> UInt16 {
    writeHeader(type, sector: sector)
    for piece in pieces where piece.isWritable { target.allow(piece.address, Int(piece.length)) }
    return ring.post(
      [LiteralDescriptor(header, 16)] + pieces + [LiteralDescriptor(status, 1, writable: true)], table: table)
  }

  /// Posts a read of a sector into ``data``.
  func postRead() { post(0, data: [LiteralDescriptor(data, 512, writable: true)]) }
  /// Makes such a read available, notifies, and does not wait.
  func beginRead() {
    postRead()
    ring.publish()
    notify()
  }
  /// What becomes of such a read.
  func read() throws -> Outcome {
    postRead()
    return try outcome(show())
  }

  /// Shows what was posted, notifies, and waits.
  func show() -> Answer {
    ring.publish()
    notify()
    return answer()
  }

  /// The status byte that a block request left: 0xff if none.
  var statusByte: UInt8 { target.literal.read(1, at: status)[0] }

  /// The outcome of a block request that was answered.
  func outcome(_ answer: Answer) throws -> Outcome {
    switch answer {
    case .stopped: return .stopped
    case .nothing: return .noAnswer
    case .used:
      switch statusByte {
      case 0: return .served
      case 1, 2: return .requestRefused
      case let other: throw Failure("a request is used, and its status is \(other)")
      }
    }
  }

  /// Whether correct requests are served correctly.
  func works() -> Bool {
    round &+= 1
    ring.wantCalls()
    switch target.kind {
    case .iommu: return iommuWorks()
    case .entropy, .faulty:
      target.literal.write([UInt8](repeating: 0, count: 256), at: data)
      target.allow(data + 64, 128)
      _ = ring.post([LiteralDescriptor(data + 64, 128, writable: true)])
      guard case .used(let used) = show(), used.count == 1, used[0].length == 128 else { return false }
      return target.literal.read(128, at: data + 64).contains { $0 != 0 }
    case .block:
      let bytes = (0..<1024).map { UInt8(truncatingIfNeeded: $0 &* 5 &+ $0 / 256) &+ round }
      target.literal.write(bytes, at: data)
      let sector = UInt64(8 + round)
      post(1, sector: sector, data: [LiteralDescriptor(data, 1024)])
      guard case .used(let written) = show(), written.count == 1, statusByte == 0 else { return false }
      target.literal.write([UInt8](repeating: 0, count: 1024), at: data)
      post(
        0, sector: sector,
        data: [LiteralDescriptor(data, 512, writable: true), LiteralDescriptor(data + 512, 512, writable: true)])
      guard case .used(let read) = show(), read.count == 1, statusByte == 0,
        read[0].length == 1025 || target.transport.isLegacy
      else { return false }
      return target.literal.read(1024, at: data) == bytes
    }
  }
}

/// What an attack came to, as the attacker sees it.
enum Outcome {
  /// Nothing had to happen: a correct request in the same session decides.
  case untouched
  /// The device did what can be made of it, correctly, and goes on.
  case served
  /// The request ended with an error, and the device goes on.
  case requestRefused
  /// The queue or the device gave up and reported it.
  case stopped
  /// The driver was not let in.
  case refused
  case noAnswer
}

/// The device did something that it must not.
struct Failure: Error, CustomStringConvertible {
  var description: String
  init(_ description: String) { self.description = description }
}

/// The device does not answer as it must.
struct Wedged: Error, CustomStringConvertible {
  var description: String
  init(_ description: String) { self.description = description }
}
