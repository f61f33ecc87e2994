import DMA
import IOMMUInterface
import IOMMUs
import Synchronization

/// A VT-d unit with its driver's tables in guest memory, written bit by bit as the specification draws them.
final class VTdBench {
  let memory: GuestMemory
  let unit: VTdUnit
  let messages = Messages()
  private var nextPage: UInt64 = 0x10_0000
  let root: UInt64

  final class Messages: Sendable {
    private let list = Mutex<[InterruptMessage]>([])
    var all: [InterruptMessage] { list.withLock { $0 } }
    func append(_ message: InterruptMessage) { list.withLock { $0.append(message) } }
  }

  init(_ options: VTdOptions = VTdOptions(), bytes: Int = 16 << 20) throws {
    memory = try GuestMemory(byteCount: bytes)
    unit = VTdUnit(memory, options: options, interrupt: { [messages] in messages.append($0) })
    root = 0x10_0000
    nextPage += 4096
  }

  func page() -> UInt64 {
    defer { nextPage += 4096 }
    return nextPage
  }

  func store(_ value: UInt64, at address: UInt64) {
    let bytes = (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * UInt64($0))) }
    _ = memory.copy(bytes.span, to: GuestAddress(address))
  }

  func load(_ address: UInt64) -> UInt64 {
    var bytes = [UInt8](repeating: 0, count: 8)
    var span = bytes.mutableSpan
    _ = memory.copy(from: GuestAddress(address), into: &span)
    return bytes.enumerated().reduce(0) { $0 | UInt64($1.element) << (8 * UInt64($1.offset)) }
  }

  func endpoint(_ requester: RequesterID) -> EndpointSpace {
    let endpoint = EndpointSpace(memory, requester: requester, isOpen: true)
    unit.adopt(endpoint)
    return endpoint
  }

  /// A context entry; `kind` 0: translated, 1: with a device-IOTLB, 2: passed through. `width` 1: three levels, 2:
  /// four.
  func setContext(
    _ requester: RequesterID, table: UInt64, kind: UInt64 = 0, domain: UInt16 = 1, width: UInt64 = 2,
    hidesFaults: Bool = false
  ) {
    let rootEntry = root + UInt64(requester.bus) * 16
    if load(rootEntry) & 1 == 0 { store(page() | 1, at: rootEntry) }
    let at = (load(rootEntry) & ~0xFFF) + UInt64(requester.rawValue & 255) * 16
    store(width | UInt64(domain) << 8, at: at + 8)
    store(table | kind << 2 | (hidesFaults ? 2 : 0) | 1, at: at)
  }

  /// Maps a page of `4096 << 9 * (level - 1)` bytes in the tables that start at `table`.
  func map(
    _ address: UInt64, to guest: UInt64, in table: UInt64, levels: Int = 4, level: Int = 1, permissions: UInt64 = 3
  ) {
    var table = table
    for l in stride(from: levels, to: level, by: -1) {
      let at = table + (address >> UInt64(12 + 9 * (l - 1)) & 511) * 8
      if load(at) & 3 == 0 { store(page() | 3, at: at) }
      table = load(at) & 0x000F_FFFF_FFFF_F000
    }
    store(
      guest | permissions | (level > 1 ? 1 << 7 : 0), at: table + (address >> UInt64(12 + 9 * (level - 1)) & 511) * 8)
  }

  /// Latches the root table and turns translation on.
  func enable() {
    unit.write(root, at: 0x20, width: 8)
    unit.write(1 << 30, at: 0x18, width: 4)
    unit.write(1 << 31, at: 0x18, width: 4)
  }

  /// Turns queued invalidation on, with a queue of one page.
  func enableQueue() -> UInt64 {
    let queue = page()
    unit.write(0, at: 0x88, width: 8)
    unit.write(queue, at: 0x90, width: 8)
    unit.write(1 << 31 | 1 << 26, at: 0x18, width: 4)
    return queue
  }
}

/// What a device does: looks addresses up through a cache of its own, as queues do.
struct Device: ~Copyable {
  private var cache: IOTLB
  private var pool = SegmentPool()

  init(_ endpoint: EndpointSpace) { cache = IOTLB(endpoint) }

  /// Reads eight bytes, or is refused; the fault is reported as a queue reports it.
  mutating func read(_ address: UInt64) -> Result<UInt64, DMAFault> { reach(address, .read) }
  /// Asks to write, without doing it.
  mutating func asksToWrite(_ address: UInt64) -> DMAFault? {
    if case .failure(let fault) = reach(address, .write) { fault } else { nil }
  }

  private mutating func reach(_ address: UInt64, _ access: DMAAccess) -> Result<UInt64, DMAFault> {
    _ = cache.beginRound()
    defer { cache.endRound() }
    var segments = pool.take()
    do throws(DMAInterruption) {
      try cache.resolve(DMAAddress(address), count: 8, for: access, into: &segments)
    } catch {
      guard case .fault(let fault) = error else { preconditionFailure("nothing here has to be asked for") }
      cache.space.report(fault)
      return .failure(fault)
    }
    return .success(segments.readable.read(UInt64.self, at: 0) ?? 0)
  }
}
