internal import DMA
internal import DriverDMA
internal import Virtio

/// What a queue is made of: how many descriptors, how many pieces a request has, and where its areas lie in one piece
/// of memory.
struct QueuePlan {
  /// What each request takes besides its data.
  struct Overhead {
    /// Pieces of the request that are not its data.
    var pieces: Int
    /// Bytes per descriptor that the driver keeps in one mapping.
    var byteCount: Int
  }
  /// Where indirect tables are: for the driver, and for the device.
  struct Tables {
    var guest: GuestAddress
    var device: DMAAddress
  }

  let features: Features
  /// Descriptors.
  let size: UInt16
  /// The most pieces of a request.
  let pieces: Int
  let usesIndirect: Bool
  /// Bytes from the start of the memory, where the descriptor area is, to the other areas.
  private let driverArea: UInt64
  private let deviceArea: UInt64
  /// Bytes of all three areas.
  let byteCount: UInt64

  /// As large as the options want it and the device and the mapper take it.
  init(
    of transport: any DriverTransport, index: Int, features: Features, options: QueueOptions, overhead: Overhead,
    maxMappingSize: UInt64
  ) throws(DriverError) {
    let isFixed = transport.hasFixedQueueSizes
    let limit = isFixed ? transport.maxQueueSize(index) : min(transport.maxQueueSize(index), options.size)
    guard limit > 0 else { throw .noQueue(index) }
    self.features = features
    usesIndirect = options.indirect && features.contains(.indirectDescriptors)
    var size = UInt16(1) << UInt16(15 - limit.leadingZeroBitCount)
    var pieces = 0
    while true {
      // A chain is no longer than its queue, indirect or not (§2.7.5.3.1).
      pieces = min(max(options.segments, 0) + overhead.pieces, Int(size))
      let needed = UInt64(size) * UInt64(max(usesIndirect ? 16 * pieces : 0, overhead.byteCount))
      if needed <= maxMappingSize, pieces > overhead.pieces || options.segments == 0 { break }
      guard size > 1, !isFixed, needed > maxMappingSize else {
        throw needed > maxMappingSize
          ? .noRoom(bytes: needed, maximum: maxMappingSize) : .segments(overhead.pieces + 1, maximum: pieces)
      }
      size /= 2
    }
    self.size = size
    self.pieces = pieces
    // The legacy interface finds all three areas from one address, so they are where it looks for them (§2.7.2).
    let isPacked = features.contains(.ringPacked)
    let none = DMAAddress(0)
    let bytes = QueueLayout(size: size, descriptorArea: none, driverArea: none, deviceArea: none)
      .byteCounts(packed: isPacked, eventIndex: true)
    driverArea = UInt64(bytes.descriptor)
    deviceArea = isPacked ? driverArea + 4 : (driverArea + UInt64(bytes.driver) + 4095) & ~4095
    byteCount = deviceArea + UInt64(bytes.device)
  }

  /// Bytes of the indirect tables, one for each descriptor; 0 for none.
  var tableByteCount: UInt64 { usesIndirect ? UInt64(size) * UInt64(16 * pieces) : 0 }

  /// The areas for the device, in memory that it finds at `start`.
  func layout(at start: DMAAddress) -> QueueLayout {
    QueueLayout(
      size: size, descriptorArea: start, driverArea: DMAAddress(start.rawValue + driverArea),
      deviceArea: DMAAddress(start.rawValue + deviceArea))
  }

  /// An empty queue with these areas, which the driver finds at `rings`.
  func makeQueue(
    _ layout: QueueLayout, rings: GuestAddress, tables: Tables?, in memory: GuestMemory
  ) throws(DriverError) -> DriverQueue {
    guard let areas = areas(rings: rings, tables: tables, in: memory) else { throw .dma(.missing(rings)) }
    do throws(DriverQueueError) {
      return try DriverQueue(layout: layout, features: features, memory: areas)
    } catch {
      throw .queue(error)
    }
  }

  private func areas(rings: GuestAddress, tables: Tables?, in memory: GuestMemory) -> DriverQueueMemory? {
    let driver = GuestAddress(rings.rawValue + driverArea)
    let device = GuestAddress(rings.rawValue + deviceArea)
    guard let tables else {
      return DriverQueueMemory(
        memory, size: size, features: features, descriptorArea: rings, driverArea: driver, deviceArea: device)
    }
    return DriverQueueMemory(
      memory, size: size, features: features, descriptorArea: rings, driverArea: driver, deviceArea: device,
      tables: tables.guest, tableAddress: tables.device, tableCapacity: pieces)
  }
}
