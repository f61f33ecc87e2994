import DMA
import DriverDMA
import IOMMUDrivers
import IOMMUInterface
import IOMMUs
import VirtioTestKit

/// A VT-d unit's registers with an eye on them: what was put into the invalidation queue, and a hand in it.
class RegisterWatch {
  /// Reads since the start.
  var reads = 0
  /// Writes to a register that do not arrive.
  var lost: Set<Int> = []
  /// What reads as something else.
  var replaced: [Int: UInt64] = [:]
  /// Called with where the newest descriptors or commands start, before the unit sees them.
  var beforeTail: ((UInt64) -> Void)?
}

final class WatchedRegisters: RegisterWatch, RegisterAccess {
  let unit: VTdUnit
  let memory: GuestMemory
  /// Descriptors that the unit was given, in order, waits left out.
  var descriptors: [(low: UInt64, high: UInt64)] = []
  private var tail: UInt64 = 0

  init(_ unit: VTdUnit) {
    self.unit = unit
    memory = unit.memory
  }

  func read(at offset: Int, width: Int) -> UInt64 {
    reads += 1
    return replaced[offset] ?? unit.read(at: offset, width: width)
  }

  func write(_ value: UInt64, at offset: Int, width: Int) {
    if lost.contains(offset) { return }
    if offset == 0x88 {
      let queue = unit.read(at: 0x90, width: 8) & ~0xFFF
      if value != 0 || tail != 0, unit.read(at: 0x1C, width: 4) & 1 << 26 != 0 {
        beforeTail?(queue + tail)
        while tail != value {
          let low = memory.word(queue + tail) ?? 0
          if low & 15 != 5 { descriptors.append((low, memory.word(queue + tail + 8) ?? 0)) }
          tail = (tail + 16) % 4096
        }
      }
      tail = value
    }
    unit.write(value, at: offset, width: width)
  }
}

/// The tables as the specification draws them: where an address leads, from the root table pointer on.
struct LiteralWalk {
  let memory: GuestMemory

  struct Page: Hashable {
    var guest: UInt64
    var size: UInt64
    var canRead: Bool
    var canWrite: Bool
  }

  /// The two words of a requester's context entry.
  func context(_ root: UInt64, bus: UInt64, deviceFunction: UInt64) -> (low: UInt64, high: UInt64)? {
    guard let entry = memory.word(root + bus * 16), entry & 1 == 1 else { return nil }
    let table = entry & 0xFFFF_FFFF_FFFF_F000
    guard let low = memory.word(table + deviceFunction * 16), let high = memory.word(table + deviceFunction * 16 + 8)
    else { return nil }
    return (low, high)
  }

  func page(_ root: UInt64, bus: UInt64, deviceFunction: UInt64, address: UInt64) -> Page? {
    guard let (low, high) = context(root, bus: bus, deviceFunction: deviceFunction), low & 1 == 1 else { return nil }
    var table = low & 0xFFFF_FFFF_FFFF_F000
    var indices = [address >> 30 & 511, address >> 21 & 511, address >> 12 & 511]
    if high & 7 == 2 { indices.insert(address >> 39 & 511, at: 0) }
    var (canRead, canWrite) = (true, true)
    for (n, index) in indices.enumerated() {
      guard let entry = memory.word(table + index * 8), entry & 3 != 0 else { return nil }
      canRead = canRead && entry & 1 != 0
      canWrite = canWrite && entry & 2 != 0
      let left = indices.count - 1 - n
      if left == 0 || entry & 0x80 != 0 {
        let size: UInt64 = [4096, 2 << 20, 1 << 30][left]
        return Page(
          guest: entry & 0x000F_FFFF_FFFF_F000 & ~(size - 1), size: size, canRead: canRead, canWrite: canWrite)
      }
      table = entry & 0x000F_FFFF_FFFF_F000
    }
    return nil
  }
}

/// A unit with its driver and what is needed to look behind both.
final class VTdBench {
  let memory: GuestMemory
  let pages: GuestPages
  let unit: VTdUnit
  let registers: WatchedRegisters
  let driver: VTdDriver
  let messages = MessageList()

  init(
    _ options: VTdOptions = VTdOptions(), tableBytes: UInt64 = 8 << 20, prepare: (WatchedRegisters) -> Void = { _ in }
  ) throws {
    memory = try GuestMemory(byteCount: 48 << 20)
    memory.numberPages(from: 8192, count: 4096)
    memory.setWord(0x5000, 5)
    pages = GuestPages(memory, at: GuestAddress(1 << 20), byteCount: tableBytes)
    unit = VTdUnit(memory, options: options, interrupt: { [messages] in messages.append($0) })
    registers = WatchedRegisters(unit)
    prepare(registers)
    driver = try VTdDriver(registers, pages: pages, wait: BoundedWait(attempts: 100))
  }

  /// Guest memory that tests map: 16 MiB of numbered pages.
  static let data: UInt64 = 32 << 20
  var walk: LiteralWalk { LiteralWalk(memory: memory) }
  /// What the unit was told.
  var root: UInt64 { unit.read(at: 0x20, width: 8) }

  func device(_ requester: RequesterID) -> DeviceView { DeviceView(unit.plug(requester, memory)) }
  /// A new domain with a requester in it, of a unit that translates if it is enabled.
  func domain(
    of requester: RequesterID, deviceIOTLB: Bool = false, enabled isEnabled: Bool = false
  ) throws -> VTdDomain {
    let domain = try driver.makeDomain()
    try driver.attach(requester, to: domain, deviceIOTLB: deviceIOTLB)
    if isEnabled { try driver.enable() }
    return domain
  }

  func page(_ requester: RequesterID, _ address: UInt64) -> LiteralWalk.Page? {
    walk.page(
      root, bus: UInt64(requester.rawValue >> 8), deviceFunction: UInt64(requester.rawValue & 255), address: address)
  }
}
