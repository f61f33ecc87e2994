import DMA

/// The contents of log pages (5.14.1). They survive resets of the controller.
struct ControllerLogs {
  enum Page: UInt8 {
    case errors = 1
    case health = 2
    case firmware = 3
  }
  private struct Failure {
    var number: UInt64
    var queue: UInt16
    var identifier: UInt16
    var status: UInt16
    var block: UInt64
    var namespace: UInt32
  }
  /// ELPE, and one.
  static let maxFailures = 4
  private var failures: [Failure] = []
  private var failureCount: UInt64 = 0
  var readBytes: UInt64 = 0
  var writtenBytes: UInt64 = 0
  var reads: UInt64 = 0
  var writes: UInt64 = 0

  init() { failures.reserveCapacity(Self.maxFailures + 1) }

  mutating func note(_ status: NVMeStatus, of command: borrowing NVMeCommand, queue: Int) {
    failureCount &+= 1
    if failures.count == Self.maxFailures { failures.removeLast() }
    failures.insert(
      Failure(
        number: failureCount, queue: UInt16(truncatingIfNeeded: queue), identifier: command.identifier,
        status: status.rawValue << 1,
        block: queue == 0 ? 0 : command.startingBlock, namespace: command.namespace), at: 0)
  }

  func bytes(_ page: Page, firmware: [UInt8]) -> [UInt8] {
    var writer = WireWriter(capacity: 512)
    switch page {
    case .errors:
      for failure in failures {
        writer.write(failure.number)
        writer.write(failure.queue)
        writer.write(failure.identifier)
        writer.write(failure.status)
        // No byte or bit of the command is blamed.
        writer.write(UInt16.max)
        writer.write(failure.block)
        writer.write(failure.namespace)
        writer.zero(64 - 28)
      }
      writer.zero(64 * (Self.maxFailures - failures.count))
    case .health:
      // Nothing critical, 30 °C, all of the spare there, a threshold of a tenth, nothing used up.
      writer.write([0, 0x2f, 0x01, 100, 10, 0])
      writer.zero(26)
      for count in [units(readBytes), units(writtenBytes), reads, writes, 0, 0, 0, 0, 0, failureCount] {
        writer.write(count)
        writer.zero(8)
      }
      writer.zero(512 - 192)
    case .firmware:
      writer.write([1] + [UInt8](repeating: 0, count: 7) + firmware)
      writer.zero(512 - 16)
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
    let all = logs.bytes(page, firmware: Self.firmware)
    let count = (UInt64(command.dwords[10] >> 16) | UInt64(command.dwords[11] & 0xffff) << 16) * 4 + 4
    let offset = UInt64(command.dwords[12]) | UInt64(command.dwords[13]) << 32
    guard offset % 4 == 0, offset <= UInt64(all.count) else { throw Refusal(.invalidField) }
    guard count <= UInt64(options.maxTransfer) else { throw Refusal(.invalidField) }
    // Past the end of the page is nothing.
    var bytes = Array(all[Int(offset)...].prefix(Int(count)))
    bytes.append(contentsOf: repeatElement(0, count: Int(count) - bytes.count))
    try yield(bytes, to: command)
    // RAE: the driver wants to read more before the next event is reported.
    if page == .errors, !keepsEvents { events.unmask() }
  }
}
