public import DMA
public import Virtio

/// One way in which a driver and a device can meet.
public struct RingCase: Hashable, Sendable, CustomStringConvertible {
  public enum Driver: Hashable, Sendable { case literal, driverQueue }
  public var isPacked: Bool
  public var indirect: Bool
  public var eventIndex: Bool
  public var inOrder: Bool
  public var path: AddressPath
  public var driver: Driver
  public var size: UInt16
  /// Whether the device's memory is another process's; see ``RemoteSpace``.
  public var isRemote = false

  public init(
    packed: Bool, size: UInt16 = 16, indirect: Bool = true, eventIndex: Bool = true, inOrder: Bool = false,
    path: AddressPath = .physical, driver: Driver = .literal
  ) {
    isPacked = packed
    self.size = size
    self.indirect = indirect
    self.eventIndex = eventIndex
    self.inOrder = inOrder
    self.path = path
    self.driver = driver
  }

  public var features: Features {
    var features: Features = [.version1]
    if isPacked { features.insert(.ringPacked) }
    if indirect { features.insert(.indirectDescriptors) }
    if eventIndex { features.insert(.eventIndex) }
    if inOrder { features.insert(.inOrder) }
    if path == .platform { features.insert(.accessPlatform) }
    return features
  }

  public var description: String {
    [
      isPacked ? "packed" : "split", "\(size)", indirect ? "indirect" : "direct", eventIndex ? "event index" : "flags",
      inOrder ? "in order" : "any order", path == .platform ? "scattered" : "physical",
      driver == .literal ? "literal" : "driver queue",
    ].joined(separator: " ") + (isRemote ? " remote" : "")
  }

  /// The same, over memory that another process has.
  public var remote: RingCase {
    var remote = self
    remote.isRemote = true
    return remote
  }

  /// Every combination. Sizes go round: each is met with many of the others.
  public static var matrix: [RingCase] {
    let splitSizes: [UInt16] = [4, 16, 64, 2, 256, 8, 128, 1]
    let packedSizes: [UInt16] = [5, 16, 3, 100, 2, 255, 64, 1, 7]
    var cases: [RingCase] = []
    for packed in [false, true] {
      for indirect in [false, true] {
        for event in [false, true] {
          for order in [false, true] {
            for path in [AddressPath.physical, .platform] {
              for driver in [Driver.literal, .driverQueue] {
                let sizes = packed ? packedSizes : splitSizes
                cases.append(
                  RingCase(
                    packed: packed, size: sizes[cases.count % sizes.count], indirect: indirect, eventIndex: event,
                    inOrder: order,
                    path: path, driver: driver))
              }
            }
          }
        }
      }
    }
    return cases
  }
}

/// Guest memory, a space over it, and a driver's ring in it. Behind a platform, the pages the device sees are shuffled.
public final class RingRig {
  public let kind: RingCase
  public let memory: GuestMemory
  public let literal: LiteralMemory
  public let space: any DMASpace
  public let paged: PagedSpace?
  /// What the device works in, if it is not ``space``.
  public let remote: RemoteSpace?
  public private(set) var ring: any LiteralRing
  public let layout: QueueLayout
  /// Room for indirect tables, one for each descriptor, `tableCapacity` descriptors each.
  public let tables: DMAAddress
  public let tableCapacity: Int
  /// Room for buffers.
  public let data: DMAAddress
  public let dataBytes: Int

  public init(
    _ kind: RingCase, dataBytes: Int = 1 << 20, tableCapacity: Int = 16, table: Bool = false,
    startingAt start: UInt16 = 0, seed: UInt64 = 7
  ) throws {
    self.kind = kind
    self.dataBytes = dataBytes
    self.tableCapacity = tableCapacity
    let base: UInt64 = kind.path == .platform ? 0x7f_1000_0000 : 0x10_0000
    let (layout, end) = literalLayout(size: kind.size, packed: kind.isPacked, at: base)
    let tableBytes = (UInt64(kind.size) * UInt64(tableCapacity) * 16 + 4095) & ~4095
    tables = DMAAddress(end)
    data = DMAAddress(end + tableBytes)
    let total = end + tableBytes + UInt64(dataBytes) - base
    self.layout = layout
    let guestBase: UInt64 = 0x10_0000
    memory = try GuestMemory(byteCount: Int(total), at: GuestAddress(guestBase))
    literal = LiteralMemory(memory)
    if kind.path == .platform {
      let paged = PagedSpace(memory, table: table)
      var random = SeededGenerator(seed)
      let count = (Int(total) + 4095) / 4096
      let shuffled = (0..<count).shuffled(using: &random)
      for i in 0..<count where (shuffled[i] + 1) * 4096 <= Int(total) || shuffled[i] == i {
        paged.map(DMAAddress(base) + 4096 * i, byteCount: 4096, to: GuestAddress(guestBase) + 4096 * shuffled[i])
        literal.map(DMAAddress(base) + 4096 * i, byteCount: 4096, to: GuestAddress(guestBase) + 4096 * shuffled[i])
      }
      self.paged = paged
      space = paged
    } else {
      paged = nil
      space = PhysicalSpace(memory)
    }
    remote = kind.isRemote ? RemoteSpace(space) : nil
    ring = Self.makeRing(kind, layout, startingAt: start, space, tables, tableCapacity, literal)
  }

  /// A new ring in the old one's place, as a driver makes one after a reset.
  public func makeRing() {
    ring = Self.makeRing(kind, layout, startingAt: 0, space, tables, tableCapacity, literal)
  }

  private static func makeRing(
    _ kind: RingCase, _ layout: QueueLayout, startingAt start: UInt16, _ space: any DMASpace, _ tables: DMAAddress,
    _ tableCapacity: Int,
    _ literal: LiteralMemory
  ) -> any LiteralRing {
    switch kind.driver {
    case .literal: makeLiteralRing(layout, features: kind.features, startingAt: start, in: literal)
    case .driverQueue:
      DriverQueueRing(
        layout, features: kind.features, space: space, tables: tables, tableCapacity: tableCapacity, in: literal)
    }
  }

  public func makeQueue(
    resumingAt state: QueueState = .initial, waking waiter: (any TranslationWaiter)? = nil
  ) throws(QueueError) -> Virtqueue {
    try Virtqueue(
      index: 0, layout: layout, features: kind.features, in: remote ?? space, waking: waiter, resumingAt: state)
  }
}
