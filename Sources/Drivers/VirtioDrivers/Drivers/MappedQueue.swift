internal import DMA
public import DriverDMA
public import Virtio

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
  private let plan: QueuePlan
  private let segmentLimit: UInt64
  private let layout: QueueLayout
  private let rings: DMAMapping
  private var tables: StreamingArea?
  private let tablePlace: QueuePlan.Tables?
  private var queue: DriverQueue
  /// `maxPieces` for each ID; of which so many are in use.
  private var ranges: FixedArray<MappedRange>
  private var counts: FixedArray<Int>
  /// The pieces of the request that is being submitted.
  private var readable: PieceList
  private var writable: PieceList

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
    let plan = try QueuePlan(
      of: transport, index: index, features: features, options: options,
      overhead: QueuePlan.Overhead(pieces: extra, byteCount: perRequest), maxMappingSize: mapper.maxMappingSize)
    let rings = try Self.allocate(plan.byteCount, mapper)
    let tables = try Self.makeTables(plan.tableByteCount, pages, mapper)
    let place = Self.place(of: tables)
    let layout = plan.layout(at: rings.address)
    queue = try plan.makeQueue(layout, rings: rings.guest, tables: place, in: mapper.memory)
    self.rings = rings
    self.tables = tables
    tablePlace = place
    self.layout = layout
    self.plan = plan
    self.index = index
    size = plan.size
    maxPieces = plan.pieces
    self.mapper = mapper
    segmentLimit = max(min(mapper.maxMappingSize, UInt64(sizeMax)), 1)
    ranges = FixedArray(count: Int(plan.size) * plan.pieces) { _ in
      MappedRange(address: DMAAddress(0), guest: GuestAddress(0), count: 0, direction: .toDevice)
    }
    counts = FixedArray(count: Int(plan.size)) { _ in 0 }
    readable = PieceList(capacity: plan.pieces)
    writable = PieceList(capacity: plan.pieces)
  }

  private static func allocate(_ byteCount: UInt64, _ mapper: any DMAMapper) throws(DriverError) -> DMAMapping {
    return try rethrowing(DMAMapping(allocating: byteCount, by: mapper), as: DriverError.dma)
  }

  private static func makeTables(
    _ byteCount: UInt64, _ pages: GuestPages, _ mapper: any DMAMapper
  ) throws(DriverError) -> StreamingArea? {
    guard byteCount > 0 else { return nil }
    return try rethrowing(StreamingArea(byteCount, .toDevice, pages: pages, by: mapper), as: DriverError.dma)
  }

  private static func place(of tables: borrowing StreamingArea?) -> QueuePlan.Tables? {
    switch tables {
    case .some(let area): QueuePlan.Tables(guest: area.guest, device: area.address(at: 0))
    case .none: nil
    }
  }

  /// Gives the queue to the device. From now on it must be ended by ``close()`` or ``abandon()``: memory that merely
  /// went out of scope would be the device's still.
  public func enable(_ transport: any DriverTransport) { transport.enableQueue(index, layout) }

  /// Descriptors that no request occupies.
  public var free: Int { Int(queue.free) }
  /// Requests that the device has.
  public var outstanding: Int { Int(queue.outstanding) }
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
    let pieces = count(data) + head.count + (last == nil ? 0 : 1)
    try check(pieces)
    let id = Int(queue.firstFree)
    readable.removeAll()
    writable.removeAll()
    for i in head.indices { readable.append(head[i]) }
    do throws(DMAError) {
      for i in data.indices { try map(data[i], direction, for: id) }
    } catch {
      _ = unmap(id)
      throw .dma(error)
    }
    if let last { writable.append(last) }
    do throws(DriverQueueError) {
      try readable.add(to: &queue, before: writable, indirect: plan.usesIndirect)
    } catch {
      _ = unmap(id)
      throw .queue(error)
    }
    if plan.usesIndirect { tables?.showDevice(UInt64(16 * maxPieces * id), UInt64(16 * pieces)) }
    return UInt16(truncatingIfNeeded: id)
  }

  /// Whether a request of so many pieces may be added now.
  private func check(_ pieces: Int) throws(DriverError) {
    guard !queue.isBroken else { throw .queue(.broken) }
    guard queue.free > 0 else { throw .queue(.full(free: 0)) }
    guard pieces > 0, pieces <= maxPieces else { throw .segments(pieces, maximum: maxPieces) }
    guard plan.usesIndirect || pieces <= Int(queue.free) else { throw .queue(.full(free: Int(queue.free))) }
  }

  /// Maps a piece of a request's data, in parts that the mapper and the device take, and adds them to its list.
  private mutating func map(_ segment: GuestSegment, _ direction: DMADirection, for id: Int) throws(DMAError) {
    let total = UInt64(segment.count)
    var done: UInt64 = 0
    while done < total {
      let size = min(total - done, segmentLimit)
      let (start, wraps) = segment.address.rawValue.addingReportingOverflow(done)
      guard !wraps else { throw .range(segment.address, count: total) }
      let range = try mapper.mapRange(GuestAddress(start), count: size, direction)
      ranges[id * maxPieces + counts[id]] = range
      counts[id] += 1
      let piece = DriverBuffer(range.address, count: UInt32(truncatingIfNeeded: size))
      if direction == .toDevice { readable.append(piece) } else { writable.append(piece) }
      done += size
    }
  }

  /// Pieces that segments become.
  private func count(_ data: Span<GuestSegment>) -> Int {
    var sum: UInt64 = 0
    for i in data.indices where data[i].count > 0 { sum += (UInt64(data[i].count) - 1) / segmentLimit + 1 }
    return Int(clamping: sum)
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

  /// Unmaps everything of a request, and goes on after an error; returns the first one. Of a request that the device
  /// never saw, errors are the mapper's to remember.
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
    queue = try plan.makeQueue(layout, rings: rings.guest, tables: tablePlace, in: mapper.memory)
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

/// Pieces of a request, no more than there was room made for: it costs no allocation.
private struct PieceList: ~Copyable {
  private var pieces: [DriverBuffer]
  private var count = 0

  init(capacity: Int) {
    pieces = [DriverBuffer](repeating: DriverBuffer(DMAAddress(0), count: 0), count: capacity)
  }

  mutating func append(_ piece: DriverBuffer) {
    pieces[count] = piece
    count += 1
  }
  mutating func removeAll() { count = 0 }

  /// Adds these, device-readable, and `writable` behind them.
  func add(to queue: inout DriverQueue, before writable: borrowing PieceList, indirect: Bool) throws(DriverQueueError) {
    _ = try queue.add(
      readable: pieces.span.extracting(..<count), writable: writable.pieces.span.extracting(..<writable.count),
      indirect: indirect)
  }
}
