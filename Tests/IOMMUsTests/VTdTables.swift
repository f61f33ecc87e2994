import DMA
import IOMMUInterface
import IOMMUs
import VirtioTestKit

/// A VT-d unit with its driver's tables in guest memory, written bit by bit as the specification draws them.
final class VTdBench {
  let memory: GuestMemory
  let unit: VTdUnit
  let messages = MessageList()
  private var nextPage: UInt64 = 0x10_1000
  let root: UInt64 = 0x10_0000
  /// A requester whose page 0x40_0000 is guest page 0x20_0000, by the tables that begin at ``table``.
  static let disk = RequesterID(bus: 1, device: 3)
  let endpoint: EndpointSpace
  var device: DeviceView
  private(set) var table: UInt64 = 0

  /// 0x20_0000 holds 0x5EED, and 0x30_0000 holds 0xFEED.
  init(_ options: VTdOptions = VTdOptions(), width: UInt64 = 2, enabled isEnabled: Bool = true) throws {
    memory = try GuestMemory(byteCount: 16 << 20)
    unit = VTdUnit(memory, options: options, interrupt: { [messages] in messages.append($0) })
    endpoint = unit.plug(Self.disk, memory)
    device = DeviceView(endpoint)
    table = page()
    setContext(Self.disk, table: table, width: width)
    store(0x5EED, at: 0x20_0000)
    store(0xFEED, at: 0x30_0000)
    map(0x40_0000, to: 0x20_0000, levels: width == 1 ? 3 : 4)
    if isEnabled { enable() }
  }

  func page() -> UInt64 {
    defer { nextPage += 4096 }
    return nextPage
  }

  func store(_ value: UInt64, at address: UInt64) { memory.setWord(address, value) }
  func load(_ address: UInt64) -> UInt64 { memory.word(address) ?? 0 }

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

  /// Maps a page of `4096 << 9 * (level - 1)` bytes in the disk's tables, or those that start at `first`.
  func map(
    _ address: UInt64, to guest: UInt64, in first: UInt64? = nil, levels: Int = 4, level: Int = 1,
    permissions: UInt64 = 3
  ) {
    var table = first ?? table
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
