public import DMA
public import DriverDMA
public import Virtio

/// A piece of a buffer as the driver knows it.
@frozen public struct GuestSegment: Hashable, Sendable {
  /// Where it is.
  public var address: GuestAddress
  /// Bytes; pieces of none are left out.
  public var count: UInt32

  /// `count` bytes at `address`.
  @inlinable public init(_ address: GuestAddress, count: UInt32) {
    self.address = address
    self.count = count
  }
}

/// How large a driver makes a queue.
public struct QueueOptions: Hashable, Sendable {
  /// The most descriptors; fewer where the device or the mapper takes fewer. Rounded down to a power of two.
  public var size: UInt16
  /// The most pieces of data in a request, after those that are too long for one mapping were cut.
  public var segments: Int
  /// Put each request into an indirect table, where that is negotiated.
  public var indirect: Bool

  /// 128 descriptors and 32 pieces, indirect, unless said otherwise.
  public init(size: UInt16 = 128, segments: Int = 32, indirect: Bool = true) {
    self.size = size
    self.segments = segments
    self.indirect = indirect
  }
}

/// A queue with its memory, and with the mappings of every request that the device has.
///
/// It maps the pieces of a request in their descriptors' directions (R177), cuts those that are longer than the mapper
/// takes (R176), takes everything back if one of them cannot be mapped (R178), and unmaps a request when the device has
/// used it, or no longer owns the queue (R179). A request costs no allocation here. One thread uses it.
public struct MappedQueue: ~Copyable {
  /// Its number in the device.
  public let index: Int
  /// Descriptors.
  public let size: UInt16
  /// The most pieces of a request, before and behind its data included.
  public let maxPieces: Int
  let mapper: any DMAMapper
  private let pages: GuestPages
  private let features: Features
  private let usesIndirect: Bool
  private let segmentLimit: UInt64
  private let layout: QueueLayout
  private let areas: (driver: UInt64, device: UInt64)
  private let rings: DMAMapping
  private var tables: StreamingArea?
  private let tablePlace: TablePlace?
  private var queue: DriverQueue
  /// `maxPieces` for each ID; of which so many are in use.
  private var ranges: FixedArray<MappedRange>
  private var counts: FixedArray<Int>
  private var readable: [DriverBuffer]
  private var writable: [DriverBuffer]

  /// Where the indirect tables are: for the driver, and for the device.
  private typealias TablePlace = (guest: GuestAddress, device: DMAAddress)

  /// Makes a queue; ``enable(_:)`` gives it to the device.
  ///
  /// - Parameters:
  ///   - features: as negotiated.
  ///   - extra: pieces of every request that are not its data.
  ///   - sizeMax: the most bytes of a piece that the device takes.
  ///   - perRequest: the most bytes per descriptor that the driver keeps in one further mapping: the queue's size is
  ///     chosen so that they fit.
  public init(
    _ transport: any DriverTransport, index: Int, features: Features, mapper: any DMAMapper, pages: GuestPages,
    options: QueueOptions,
    extra: Int = 0, sizeMax: UInt32 = .max, perRequest: Int = 0
  ) throws(DriverError) {
    let isFixed = transport.hasFixedQueueSizes
    let limit = isFixed ? transport.maxQueueSize(index) : min(transport.maxQueueSize(index), options.size)
    guard limit > 0 else { throw .noQueue(index) }
    var size = UInt16(1) << UInt16(15 - limit.leadingZeroBitCount)
    let indirect = options.indirect && features.contains(.indirectDescriptors)
    var pieces = 0
    while true {
      // A chain is no longer than its queue, indirect or not (§2.7.5.3.1).
      pieces = min(max(options.segments, 0) + extra, Int(size))
      let needed = UInt64(size) * UInt64(max(indirect ? 16 * pieces : 0, perRequest))
      if needed <= mapper.maxMappingSize, pieces > extra || options.segments == 0 { break }
      guard size > 1, !isFixed, needed > mapper.maxMappingSize else {
        throw needed > mapper.maxMappingSize
          ? .noRoom(bytes: needed, maximum: mapper.maxMappingSize) : .segments(extra + 1, maximum: pieces)
      }
      size /= 2
    }
    // The legacy interface finds all three areas from one address, so they are where it looks for them (§2.7.2).
    let isPacked = features.contains(.ringPacked)
    let empty = QueueLayout(
      size: size, descriptorArea: DMAAddress(0), driverArea: DMAAddress(0), deviceArea: DMAAddress(0))
    let bytes = empty.byteCounts(packed: isPacked, eventIndex: true)
    let driver = UInt64(bytes.descriptor)
    let device = isPacked ? driver + 4 : (driver + UInt64(bytes.driver) + 4095) & ~4095
    let areas = (driver: driver, device: device)
    let rings = try Self.allocate(device + UInt64(bytes.device), mapper)
    var place: TablePlace?
    let tables = try Self.makeTables(indirect ? UInt64(size) * UInt64(16 * pieces) : 0, pages, mapper, &place)
    let base = rings.address.rawValue
    let layout = QueueLayout(
      size: size, descriptorArea: DMAAddress(base), driverArea: DMAAddress(base + driver),
      deviceArea: DMAAddress(base + device))
    queue = try Self.makeQueue(layout, features, rings.guest, areas, place, pieces, mapper.memory)
    self.rings = rings
    self.tables = tables
    tablePlace = place
    self.layout = layout
    self.areas = areas
    self.index = index
    self.size = size
    self.mapper = mapper
    self.pages = pages
    self.features = features
    usesIndirect = indirect
    maxPieces = pieces
    segmentLimit = max(min(mapper.maxMappingSize, UInt64(sizeMax)), 1)
    ranges = FixedArray(count: Int(size) * pieces) { _ in
      MappedRange(address: DMAAddress(0), guest: GuestAddress(0), count: 0, direction: .toDevice)
    }
    counts = FixedArray(count: Int(size)) { _ in 0 }
    let none = DriverBuffer(DMAAddress(0), count: 0)
    readable = [DriverBuffer](repeating: none, count: pieces)
    writable = readable
  }

  private static func allocate(_ byteCount: UInt64, _ mapper: any DMAMapper) throws(DriverError) -> DMAMapping {
    return try rethrowing(DMAMapping(allocating: byteCount, by: mapper), as: DriverError.dma)
  }

  private static func makeTables(
    _ byteCount: UInt64, _ pages: GuestPages, _ mapper: any DMAMapper, _ place: inout TablePlace?
  ) throws(DriverError) -> StreamingArea? {
    guard byteCount > 0 else { return nil }
    let area = try rethrowing(
      StreamingArea(byteCount, .toDevice, pages: pages, by: mapper), as: DriverError.dma)
    place = (area.guest, area.address(at: 0))
    return area
  }

  private static func makeQueue(
    _ layout: QueueLayout, _ features: Features, _ rings: GuestAddress, _ areas: (driver: UInt64, device: UInt64),
    _ tables: TablePlace?, _ capacity: Int, _ memory: GuestMemory
  ) throws(DriverError) -> DriverQueue {
    let driver = GuestAddress(rings.rawValue + areas.driver)
    let device = GuestAddress(rings.rawValue + areas.device)
    let found: DriverQueueMemory?
    if let tables {
      found = DriverQueueMemory(
        memory, size: layout.size, features: features, descriptorArea: rings, driverArea: driver, deviceArea: device,
        tables: tables.guest, tableAddress: tables.device, tableCapacity: capacity)
    } else {
      found = DriverQueueMemory(
        memory, size: layout.size, features: features, descriptorArea: rings, driverArea: driver, deviceArea: device)
    }
    guard let found else { throw .dma(.missing(rings)) }
    do throws(DriverQueueError) {
      return try DriverQueue(layout: layout, features: features, memory: found)
    } catch {
      throw .queue(error)
    }
  }

  /// Gives the queue to the device. From now on it must be ended by ``close()`` or ``abandon()``: memory that merely
  /// went out of scope would be the device's still.
  public func enable(_ transport: any DriverTransport) { transport.enableQueue(index, layout) }

  /// Descriptors that no request occupies.
  public var free: Int { Int(queue.free) }
  /// Requests that the device has.
  public var outstanding: Int { Int(queue.outstanding) }
  /// Where the device finds the queue.
  public var queueLayout: QueueLayout { layout }
  /// The device broke a rule of the ring; only a reset helps.
  public var isBroken: Bool { queue.isBroken }
  /// The ID that the next ``submit(_:data:_:last:)`` returns, while ``free`` is not 0: for what a driver has to write
  /// into a request's own memory before it submits it.
  public var nextID: UInt16 { queue.firstFree }

  /// Maps a request's data and adds it; the device sees it after ``publish(_:)``.
  ///
  /// - Parameters:
  ///   - head: device-readable pieces that are mapped already.
  ///   - data: the pieces to be mapped; device-readable to the device, device-writable from it.
  ///   - last: a device-writable piece, mapped already, behind everything.
  /// - Returns: the request's ID, below ``size``, unique until the request is reaped.
  public mutating func submit(
    _ head: Span<DriverBuffer>, data: Span<GuestSegment>, _ direction: DMADirection, last: DriverBuffer?
  ) throws(DriverError) -> UInt16 {
    guard !queue.isBroken else { throw .queue(.broken) }
    let id = Int(queue.firstFree)
    guard queue.free > 0 else { throw .queue(.full(free: 0)) }
    let pieces = count(data) + head.count + (last == nil ? 0 : 1)
    guard pieces > 0, pieces <= maxPieces else { throw .segments(pieces, maximum: maxPieces) }
    guard usesIndirect || pieces <= Int(queue.free) else { throw .queue(.full(free: Int(queue.free))) }
    var out = 0
    var back = 0
    for i in head.indices {
      readable[out] = head[i]
      out += 1
    }
    var mapped = 0
    do throws(DMAError) {
      for i in data.indices {
        var done: UInt64 = 0
        let total = UInt64(data[i].count)
        while done < total {
          let size = min(total - done, segmentLimit)
          let (start, wraps) = data[i].address.rawValue.addingReportingOverflow(done)
          guard !wraps else { throw .range(data[i].address, count: total) }
          let range = try mapper.mapRange(GuestAddress(start), count: size, direction)
          ranges[id * maxPieces + mapped] = range
          mapped += 1
          let buffer = DriverBuffer(range.address, count: UInt32(truncatingIfNeeded: size))
          if direction == .toDevice {
            readable[out] = buffer
            out += 1
          } else {
            writable[back] = buffer
            back += 1
          }
          done += size
        }
      }
    } catch {
      unwind(id, mapped)
      throw .dma(error)
    }
    if let last {
      writable[back] = last
      back += 1
    }
    do throws(DriverQueueError) {
      try Self.add(&queue, readable, out, writable, back, usesIndirect)
    } catch {
      unwind(id, mapped)
      throw .queue(error)
    }
    counts[id] = mapped
    if usesIndirect { tables?.showDevice(UInt64(16 * maxPieces * id), UInt64(16 * pieces)) }
    return UInt16(truncatingIfNeeded: id)
  }

  private static func add(
    _ queue: inout DriverQueue, _ readable: [DriverBuffer], _ out: Int, _ writable: [DriverBuffer], _ back: Int,
    _ indirect: Bool
  ) throws(DriverQueueError) {
    _ = try queue.add(
      readable: readable.span.extracting(..<out), writable: writable.span.extracting(..<back), indirect: indirect)
  }

  /// Pieces that segments become.
  private func count(_ data: Span<GuestSegment>) -> Int {
    var sum: UInt64 = 0
    for i in data.indices where data[i].count > 0 { sum += (UInt64(data[i].count) - 1) / segmentLimit + 1 }
    return Int(clamping: sum)
  }

  /// Takes back the mappings of a request that the device never saw. Errors of that are the mapper's to remember.
  private func unwind(_ id: Int, _ mapped: Int) {
    for i in 0..<mapped { try? mapper.unmapRange(ranges[id * maxPieces + i]) }
  }

  /// Makes what was added available, and notifies the device if it wants that.
  public mutating func publish(_ transport: any DriverTransport) {
    if queue.publish() { transport.notify(index, data: queue.notificationData) }
  }

  /// The next request that the device is done with, or nil: its data is the driver's again.
  public mutating func reap() throws(DriverError) -> UsedBuffer? {
    guard let used = try rethrowing(queue.reap(), as: DriverError.queue) else { return nil }
    if let error = unmap(Int(used.id)) { throw .dma(error) }
    return used
  }

  /// Unmaps everything of a request, even if a part fails; returns the first error.
  private mutating func unmap(_ id: Int) -> DMAError? {
    var first: DMAError?
    for i in 0..<counts[id] {
      do throws(DMAError) { try mapper.unmapRange(ranges[id * maxPieces + i]) } catch { first = first ?? error }
    }
    counts[id] = 0
    return first
  }

  /// As `DriverQueue/disarmCall()`.
  public mutating func disarmCall() { queue.disarmCall() }
  /// As `DriverQueue/armCall(after:)`.
  public mutating func armCall(after count: UInt16 = 0) -> Bool { queue.armCall(after: count) }

  /// Takes the queue back from the device (§2.6.1, where VIRTIO_F_RING_RESET is negotiated), unmaps what the device
  /// had, and gives it the queue again, empty.
  public mutating func restart(_ transport: any DriverTransport) throws(DriverError) {
    transport.resetQueue(index)
    var first: DMAError?
    for id in 0..<Int(size) { if let error = unmap(id) { first = first ?? error } }
    queue = try Self.makeQueue(
      layout, features, rings.guest, areas, tablePlace, maxPieces, mapper.memory)
    transport.enableQueue(index, layout)
    if let first { throw .dma(first) }
  }

  /// Gives all memory back. The device was reset, and came out of it.
  public consuming func close() throws(DriverError) {
    var first: DMAError?
    for id in 0..<Int(size) { if let error = unmap(id) { first = first ?? error } }
    do throws(DMAError) { try tables.take()?.close() } catch { first = first ?? error }
    do throws(DMAError) { try rings.unmap() } catch { first = first ?? error }
    if let first { throw .dma(first) }
  }

  /// Leaves all memory to a device that did not come out of its reset: it is never used for anything again (R179).
  public consuming func abandon() {
    tables.take()?.abandon()
    rings.abandon()
  }
}
