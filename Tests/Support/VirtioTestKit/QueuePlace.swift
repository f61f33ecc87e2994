public import DMA
public import Virtio

/// Memory for a queue and its buffers, as a driver has it: by the addresses that the device is given.
public struct QueuePlace {
  public var layout: QueueLayout
  /// Room for indirect tables of 8 descriptors.
  public var tables: DMAAddress
  public var data: DMAAddress
  public var literal: LiteralMemory
  public var space: any DMASpace

  public init(layout: QueueLayout, tables: DMAAddress, data: DMAAddress, literal: LiteralMemory, space: any DMASpace) {
    self.layout = layout
    self.tables = tables
    self.data = data
    self.literal = literal
    self.space = space
  }

  /// Memory from 1 MiB on, or page by page somewhere there under other addresses if `isScattered`.
  ///
  /// - Parameter map: called for each page that is somewhere else.
  public init(
    _ memory: GuestMemory, size: UInt16, packed: Bool, scattered isScattered: Bool,
    map: (DMAAddress, GuestAddress) -> Void = { _, _ in }
  ) {
    let base: UInt64 = isScattered ? 0x7f_1000_0000 : 0x10_0000
    let (layout, end) = literalLayout(size: size, packed: packed, at: base)
    let literal = LiteralMemory(memory)
    let count = Int((end + 0x2_0000 - base) / 4096)
    let paged = PagedSpace(memory)
    for page in 0..<count where isScattered {
      let (address, guest) = (DMAAddress(base) + 4096 * page, GuestAddress(0x10_0000) + 4096 * (count - page))
      literal.map(address, byteCount: 4096, to: guest)
      paged.map(address, byteCount: 4096, to: guest)
      map(address, guest)
    }
    self.init(
      layout: layout, tables: DMAAddress(end), data: DMAAddress(end + 0x1_0000), literal: literal,
      space: isScattered ? paged : PhysicalSpace(memory))
  }

  public func ring(_ features: Features, _ kind: RingCase.Driver) -> any LiteralRing {
    switch kind {
    case .literal: makeLiteralRing(layout, features: features, in: literal)
    case .driverQueue:
      DriverQueueRing(layout, features: features, space: space, tables: tables, tableCapacity: 8, in: literal)
    }
  }
}
