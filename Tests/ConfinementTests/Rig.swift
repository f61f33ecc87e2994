import DMA
import Testing
import Virtio
import VirtioTestKit

/// A device, its ring, and a driver, in a space where every address is far above all memory: what is reached at all was
/// mapped.
final class Rig {
  static let base: UInt64 = 0x40_0000_0000
  let memory: GuestMemory
  let space: PagedSpace
  let literal: LiteralMemory
  let device = TestDevice.copying()
  let features: Features
  let harness: DeviceHarness
  private(set) var layout: QueueLayout
  private(set) var ring: (any LiteralRing)!
  private var nextAddress: UInt64
  private var nextGuest: UInt64

  /// - Parameter minimal: the ring's areas get the permissions of their direction only (§2.7, §2.8).
  init(
    packed: Bool, size: UInt16 = 8, _ more: Features = [], minimal: Bool = false,
    through wrap: ((PagedSpace) -> any DMASpace)? = nil
  ) throws {
    memory = try GuestMemory(byteCount: 16 << 20)
    space = PagedSpace(memory)
    literal = LiteralMemory(memory)
    features = Features([.version1, .indirectDescriptors]).union(packed ? .ringPacked : []).union(more)
    let (layout, end) = literalLayout(size: size, packed: packed, at: Self.base)
    self.layout = layout
    nextAddress = end
    nextGuest = 16 << 20
    harness = try DeviceHarness(device, features: features, in: wrap?(space) ?? space)
    func area(_ first: DMAAddress, _ last: UInt64, _ permissions: DMAPermissions) {
      map(first.rawValue, pages: Int((last - first.rawValue) / 4096), minimal ? permissions : .readWrite)
    }
    area(layout.descriptorArea, layout.driverArea.rawValue, packed ? .readWrite : .read)
    area(layout.driverArea, layout.deviceArea.rawValue, .read)
    area(layout.deviceArea, end, .write)
    ring = makeLiteralRing(layout, features: features, in: literal)
    try harness.start(0, layout)
  }

  var split: LiteralSplitRing { get throws { try #require(ring as? LiteralSplitRing) } }

  /// Maps pages one by one to guest pages that are never neighbours in this order.
  func map(_ address: UInt64, pages: Int, _ permissions: DMAPermissions = .readWrite) {
    for page in 0..<UInt64(pages) {
      nextGuest -= 2 * 4096
      precondition(nextGuest > 0, "the test needs more memory")
      let place = DMAAddress(address + page * 4096)
      space.map(place, byteCount: 4096, to: GuestAddress(nextGuest), permissions)
      literal.map(place, byteCount: 4096, to: GuestAddress(nextGuest))
    }
  }

  /// Fresh device addresses with memory behind them, a hole before and after.
  func allocate(pages: Int, _ permissions: DMAPermissions = .readWrite) -> UInt64 {
    nextAddress += 4096
    let address = nextAddress
    map(address, pages: pages, permissions)
    nextAddress += UInt64(pages) * 4096
    return address
  }

  /// Fresh device addresses with nothing behind them.
  func reserve(pages: Int) -> UInt64 {
    nextAddress += 4096
    defer { nextAddress += UInt64(pages) * 4096 }
    return nextAddress
  }

  func read(_ address: UInt64, _ count: Int) -> LiteralDescriptor {
    LiteralDescriptor(DMAAddress(address), UInt32(count))
  }
  func write(_ address: UInt64, _ count: Int) -> LiteralDescriptor {
    LiteralDescriptor(DMAAddress(address), UInt32(count), writable: true)
  }
  func fault(
    _ address: UInt64, _ access: DMAAccess = .read, _ reason: DMAFault.Reason = .unmapped
  ) -> DMAFault { DMAFault(address: DMAAddress(address), access: access, reason: reason) }
  func put(_ bytes: [UInt8], at address: UInt64) { literal.write(bytes, at: DMAAddress(address)) }
  func get(_ count: Int, at address: UInt64) -> [UInt8] { literal.read(count, at: DMAAddress(address)) }

  /// Posts, kicks, and returns what came back.
  @discardableResult func run(_ chain: [LiteralDescriptor], table: UInt64? = nil) -> [LiteralUsed] {
    _ = ring.post(chain, table: table.map { DMAAddress($0) })
    ring.publish()
    harness.kick(0)
    return ring.takeUsed()
  }

  /// Copies a few bytes through the ring, to see that it works.
  func expectWorks(sourceLocation: SourceLocation = #_sourceLocation) {
    let from = allocate(pages: 1)
    let to = allocate(pages: 1)
    put([1, 2, 3, 4], at: from)
    let used = run([read(from, 4), write(to, 4)])
    #expect(used.map(\.length) == [4], sourceLocation: sourceLocation)
    #expect(get(4, at: to) == [1, 2, 3, 4], sourceLocation: sourceLocation)
  }

  /// Begins to log what is written.
  func log(bytes: Int = 4096) throws -> HostMapping {
    let bits = try HostMapping(anonymous: bytes)
    memory.setDirtyLog(DirtyLog(bits: bits, memory: memory))
    return bits
  }

  /// A ring elsewhere, for a driver that starts anew.
  func renew() throws {
    harness.reset()
    let packed = features.contains(.ringPacked)
    let (layout, end) = literalLayout(size: self.layout.size, packed: packed, at: reserve(pages: 0) + 4096)
    map(layout.descriptorArea.rawValue, pages: Int((end - layout.descriptorArea.rawValue) / 4096))
    nextAddress = end
    self.layout = layout
    ring = makeLiteralRing(layout, features: features, in: literal)
    try harness.start(0, layout)
  }
}

/// A device and a split ring of 8 in `memory` from 0x1000 on, in a space that the test makes.
struct PlainRig {
  let device = TestDevice.copying()
  let harness: DeviceHarness
  private let ring: LiteralSplitRing

  init(_ memory: GuestMemory, in space: any DMASpace) throws {
    harness = try DeviceHarness(device, features: .version1, in: space)
    let (layout, _) = literalLayout(size: 8, packed: false, at: 0x1000)
    ring = LiteralSplitRing(layout, in: LiteralMemory(memory))
    try harness.start(0, layout)
  }

  /// Posts, kicks, and returns what came back.
  @discardableResult func run(_ chain: [LiteralDescriptor]) -> [LiteralUsed] {
    ring.post(chain)
    ring.publish()
    harness.kick(0)
    return ring.takeUsed()
  }
}
