import DMA

/// The contents of log pages (5.14.1). They survive resets of the controller.
struct ControllerLogs {
  enum Page: UInt8, CaseIterable {
    case supported = 0x00
    case errors = 0x01
    case health = 0x02
    case firmware = 0x03
    case changedNamespaces = 0x04
    case effects = 0x05
    case features = 0x12
  }
  private struct Failure {
    var number: UInt64
    var status: UInt16
    var record: CommandRecord
  }
  /// ELPE, and one.
  static let maxFailures = 64
  /// Kelvins. There is no sensor: a room's temperature.
  static let temperature: UInt32 = 303
  private var failures: [Failure] = []
  private var failureCount: UInt64 = 0
  private var readBytes: UInt64 = 0
  private var writtenBytes: UInt64 = 0
  private var reads: UInt64 = 0
  private var writes: UInt64 = 0
  var mediumErrors: UInt64 = 0
  /// Namespaces whose size changed since the driver read of it.
  var changed: Set<UInt32> = []
  private let begun = ContinuousClock.now

  init() { failures.reserveCapacity(Self.maxFailures + 1) }

  mutating func note(_ status: NVMeStatus, of record: CommandRecord) {
    failureCount &+= 1
    if failures.count == Self.maxFailures { failures.removeLast() }
    failures.insert(Failure(number: failureCount, status: status.rawValue << 1, record: record), at: 0)
  }

  mutating func count(read bytes: Int) {
    readBytes &+= UInt64(bytes)
    reads &+= 1
  }
  mutating func count(written bytes: Int) {
    writtenBytes &+= UInt64(bytes)
    writes &+= 1
  }

  /// Pages that tell what happened.
  fileprivate func bytes(_ page: Page, firmware: [UInt8], warning: UInt8) -> [UInt8] {
    var writer = WireWriter(capacity: 4096)
    switch page {
    case .errors:
      for failure in failures {
        writer.write(failure.number)
        writer.write(UInt16(truncatingIfNeeded: failure.record.queue))
        writer.write(failure.record.identifier)
        writer.write(failure.status)
        // No byte or bit of the command is blamed.
        writer.write(UInt16.max)
        writer.write(failure.record.block)
        writer.write(failure.record.namespace)
        writer.zero(64 - 28)
      }
      writer.zero(64 * (Self.maxFailures - failures.count))
    case .health:
      // Warnings, the temperature, all of the spare there, a threshold of a tenth, nothing used up.
      writer.write([
        warning, UInt8(truncatingIfNeeded: Self.temperature), UInt8(truncatingIfNeeded: Self.temperature >> 8), 100, 10,
        0,
      ])
      writer.zero(26)
      // Busy minutes are not counted. The power goes on once, when the controller is made, and off without a loss.
      let hours = UInt64(clamping: begun.duration(to: .now).components.seconds / 3600)
      let counts = [
        units(readBytes), units(writtenBytes), reads, writes, 0, 1, hours, 0, mediumErrors, failureCount,
      ]
      for count in counts {
        writer.write(count)
        writer.zero(8)
      }
      writer.zero(512 - 192)
    case .firmware:
      writer.write([1] + [UInt8](repeating: 0, count: 7) + firmware)
      writer.zero(512 - 16)
    case .changedNamespaces:
      for number in changed.sorted() { writer.write(number) }
      writer.zero(4096 - 4 * changed.count)
    case .supported:
      // LSUPP.
      let pages = Set(Page.allCases.map(\.rawValue))
      for number in 0..<UInt8.max { writer.write(pages.contains(number) ? UInt32(1) : 0) }
      writer.write(UInt32(0))
    case .features:
      // FSUPP.
      for number in 0..<UInt8.max { writer.write(NVMeFeature(rawValue: number) == nil ? UInt32(0) : 1) }
      writer.write(UInt32(0))
    case .effects: break
    }
    return writer.bytes
  }

  /// Thousands of 512 bytes, rounded up.
  private func units(_ bytes: UInt64) -> UInt64 { bytes / 512_000 + (bytes % 512_000 == 0 ? 0 : 1) }
}

extension ControllerWorker {
  mutating func getLogPage(_ command: borrowing NVMeCommand) throws(Refusal) {
    guard let page = ControllerLogs.Page(rawValue: UInt8(truncatingIfNeeded: command.dwords[10])) else {
      throw Refusal(.invalidLogPage)
    }
    let namespace = command.namespace
    guard namespace == 0 || namespace == .max else { throw Refusal(.invalidNamespace) }
    let keepsEvents = command.dwords[10] & 1 << 15 != 0
    let all = page == .effects ? effects : logs.bytes(page, firmware: Self.firmware, warning: warning)
    let count = (UInt64(command.dwords[10] >> 16) | UInt64(command.dwords[11] & 0xffff) << 16) * 4 + 4
    let offset = UInt64(command.dwords[12]) | UInt64(command.dwords[13]) << 32
    guard offset % 4 == 0, offset <= UInt64(all.count) else { throw Refusal(.invalidField) }
    guard count <= UInt64(options.maxTransfer) else { throw Refusal(.invalidField) }
    // Past the end of the page is nothing.
    var bytes = Array(all[Int(offset)...].prefix(Int(count)))
    bytes.append(contentsOf: repeatElement(0, count: Int(count) - bytes.count))
    try yield(bytes, to: command)
    // RAE: the driver wants to read more before the next event is reported.
    guard !keepsEvents else { return }
    if page == .changedNamespaces { logs.changed = [] }
    events.didRead(page)
  }

  /// Critical warnings: the temperature is where the driver said that it is critical.
  private var warning: UInt8 {
    let (over, under) = features.thresholds
    return ControllerLogs.temperature >= over || ControllerLogs.temperature <= under ? 1 << 1 : 0
  }

  /// Commands supported and effects: CSUPP, and LBCC of those that change blocks.
  private var effects: [UInt8] {
    var writer = WireWriter(capacity: 4096)
    for opcode in 0...UInt8.max { writer.write(NVMeAdminOpcode(rawValue: opcode) == nil ? UInt32(0) : 1) }
    for number in 0...UInt8.max {
      let opcode = NVMeOpcode(rawValue: number)
      let isThere = opcode.map { $0 != .datasetManagement || commandSupport & 1 << 2 != 0 } ?? false
      let changes = opcode == .write || opcode == .writeZeroes || opcode == .datasetManagement
      writer.write(isThere ? (changes ? UInt32(3) : 1) : 0)
    }
    writer.zero(4096 - 2048)
    return writer.bytes
  }
}
