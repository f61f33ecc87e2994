import DMA
import DriverDMA
import VirtioDrivers

/// What the guest of a machine does with its disks.
public struct Workload: Hashable, Sendable {
  /// What each request is.
  public enum Kind: String, Hashable, Sendable, CaseIterable {
    case read, write
    /// Writes a pattern, reads it back, and compares each byte.
    case verify
    /// As `verify`, with mappings made and taken away between and around the requests.
    case churn
  }
  public var kind = Kind.verify
  /// Requests of each device at most: it ends with the limit that is reached first.
  public var requests = 2000
  /// How long, for each device.
  public var seconds = 1.0
  /// Bytes of a request: a multiple of 512, up to 256 KiB.
  public var blockSize = 4096
  /// Where the random offsets and patterns start.
  public var seed: UInt64 = 1

  public init() {}
}

/// What a workload did on one device.
public struct WorkloadReport: Sendable {
  public var device: String
  public var requests: UInt64 = 0
  public var bytes: UInt64 = 0
  /// Bytes that came back other than they were written.
  public var wrongBytes: UInt64 = 0
  /// Mappings made and taken away beside those of requests.
  public var churned: UInt64 = 0
  public var duration = Duration.zero
  /// Why it ended early, or nil.
  public var error: String?

  /// A request that moved so many bytes.
  fileprivate mutating func count(_ byteCount: Int) {
    requests += 1
    bytes += UInt64(byteCount)
  }
}

/// Runs a workload on one started driver. The machine's thread calls it.
struct WorkloadRun {
  private let workload: Workload
  private let driver: GuestDriver
  private let guest: GuestOS
  private var random: SeededGenerator
  private var report: WorkloadReport

  static func run(
    _ workload: Workload, _ device: PluggedDevice, _ driver: GuestDriver, on guest: GuestOS
  ) -> WorkloadReport {
    var run = WorkloadRun(
      workload: workload, driver: driver, guest: guest, random: SeededGenerator(seed: workload.seed),
      report: WorkloadReport(device: device.description.name))
    let clock = ContinuousClock()
    let start = clock.now
    do throws(MachineError) {
      while run.report.requests < UInt64(workload.requests), clock.now - start < .seconds(workload.seconds) {
        try run.step()
      }
    } catch {
      run.report.error = "\(error)"
    }
    run.report.duration = clock.now - start
    return run.report
  }

  private mutating func step() throws(MachineError) {
    let size = workload.blockSize
    let buffer = GuestSegment(GuestAddress(MemoryPlan.buffers), count: UInt32(size))
    if workload.kind == .churn { try churn() }
    guard let stored = driver.driver.byteCount else {
      report.count(try driver.receive(from: 0, into: [buffer]))
      return
    }
    guard stored >= size else { throw .missing("the disk has no room for a request of \(size) bytes") }
    let place = random.next() % ((stored - UInt64(size)) / 512 + 1) * 512
    switch workload.kind {
    case .read: report.count(try driver.receive(from: place, into: [buffer]))
    case .write:
      fill(buffer, seed: random.next())
      try driver.send(to: place, from: [buffer])
      report.count(size)
    case .verify, .churn:
      let pattern = fill(buffer, seed: random.next())
      try driver.send(to: place, from: [buffer])
      report.count(size)
      _ = guest.memory.copy([UInt8](repeating: 0, count: size).span, to: buffer.address)
      if workload.kind == .churn { try churn() }
      report.count(try driver.receive(from: place, into: [buffer]))
      let back = bytes(buffer)
      for i in back.indices where back[i] != pattern[i] { report.wrongBytes += 1 }
    }
  }

  /// Maps a few pages of the guest's beside the buffer, and takes them away again.
  private mutating func churn() throws(MachineError) {
    do throws(DMAError) {
      let count = 1 + random.next() % 4
      let place = try guest.pages.allocate(count * 4096)
      defer { guest.pages.free(place, byteCount: count * 4096) }
      let mapping = try DMAMapping(
        place, count: count * 4096, random.next() % 2 == 0 ? .toDevice : .fromDevice, by: driver.mapper)
      try mapping.unmap()
      report.churned += 1
    } catch {
      throw .dma(error)
    }
  }

  @discardableResult private func fill(_ buffer: GuestSegment, seed: UInt64) -> [UInt8] {
    var generator = SeededGenerator(seed: seed)
    var bytes: [UInt8] = []
    bytes.reserveCapacity(Int(buffer.count))
    while bytes.count < Int(buffer.count) {
      let word = generator.next()
      for shift in stride(from: 0, to: 64, by: 8) { bytes.append(UInt8(truncatingIfNeeded: word >> UInt64(shift))) }
    }
    _ = guest.memory.copy(bytes.span, to: buffer.address)
    return bytes
  }

  private func bytes(_ buffer: GuestSegment) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Int(buffer.count))
    var span = bytes.mutableSpan
    _ = guest.memory.copy(from: buffer.address, into: &span)
    return bytes
  }
}

/// The same numbers for the same seed, on every machine.
struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed }
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var mixed = state
    mixed = (mixed ^ mixed >> 30) &* 0xBF58_476D_1CE4_E5B9
    mixed = (mixed ^ mixed >> 27) &* 0x94D0_49BB_1331_11EB
    return mixed ^ mixed >> 31
  }
}
