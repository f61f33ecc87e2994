import DMA
internal import DriverDMA
import Virtio

/// A request queue of a block device: requests as §5.2.6 lays them out.
///
/// Header and status of each request are in memory of the queue's own, mapped once: a request maps its data and nothing
/// else.
struct BlockQueue: ~Copyable {
  private var queue: MappedQueue
  private let heads: StreamingArea
  private let tails: StreamingArea
  private let headCells: RingMemory
  private let tailCells: RingMemory
  private var ledger: RequestLedger
  /// Bytes that the device has to write for each ID.
  private var needed: FixedArray<UInt64>
  private let isLegacy: Bool

  /// The most ranges of a discard or write zeroes request.
  static var maxRanges: Int { 8 }
  private static var headSize: Int { BlockLayout.headerSize + BlockLayout.rangeSize * maxRanges }
  /// The device ID comes right before the status, which is the last byte.
  private static var tailSize: Int { 32 }

  init(
    _ transport: any DriverTransport, index: Int, features: Features, mapper: any DMAMapper, pages: GuestPages,
    options: QueueOptions,
    sizeMax: UInt32
  ) throws(DriverError) {
    // Header, ranges or data, status.
    let made = try MappedQueue(
      transport, index: index, features: features, mapper: mapper, pages: pages, options: options, extra: 2,
      sizeMax: sizeMax,
      perRequest: Self.headSize)
    let size = Int(made.size)
    let heads = try Self.makeArea(UInt64(size * Self.headSize), .toDevice, pages, mapper)
    let tails = try Self.makeArea(UInt64(size * Self.tailSize), .fromDevice, pages, mapper)
    guard let headCells = heads.cells(), let tailCells = tails.cells() else { throw .dma(.missing(heads.guest)) }
    self.headCells = headCells
    self.tailCells = tailCells
    self.heads = heads
    self.tails = tails
    queue = made
    ledger = RequestLedger(size: queue.size)
    needed = FixedArray(count: size) { _ in 0 }
    isLegacy = !features.contains(.version1)
    queue.enable(transport)
  }

  private static func makeArea(
    _ byteCount: UInt64, _ direction: DMADirection, _ pages: GuestPages, _ mapper: any DMAMapper
  ) throws(DriverError) -> StreamingArea {
    return try rethrowing(StreamingArea(byteCount, direction, pages: pages, by: mapper), as: DriverError.dma)
  }

  var maxSegments: Int { queue.maxPieces - 2 }
  var outstanding: Int { queue.outstanding }
  var free: Int { queue.free }
  var isBroken: Bool { queue.isBroken }

  /// Adds a request; the device sees it after ``publish(_:)``.
  mutating func submit(
    _ type: BlockRequestType, sector: UInt64, ranges: Span<BlockRange>, data: Span<GuestSegment>,
    _ direction: DMADirection
  ) throws(DriverError) -> RequestTag {
    guard queue.free > 0 else { throw .queue(.full(free: 0)) }
    let id = Int(queue.nextID)
    let head = id * Self.headSize
    let tail = id * Self.tailSize
    headCells.store64(UInt64(type.rawValue).littleEndian, at: head)
    headCells.store64(sector.littleEndian, at: head + BlockLayout.sectorOffset)
    var at = head + BlockLayout.headerSize
    for i in ranges.indices {
      headCells.store64(ranges[i].sector.littleEndian, at: at)
      headCells.store64((UInt64(ranges[i].sectorCount) | UInt64(ranges[i].flags) << 32).littleEndian, at: at + 8)
      at += BlockLayout.rangeSize
    }
    heads.showDevice(UInt64(head), UInt64(at - head))
    // An invalid status, so that a status that the device never wrote is not mistaken for that of the last request.
    tailCells.store32(UInt32(0xff00_0000).littleEndian, at: tail + 28)
    tails.showDevice(UInt64(tail), UInt64(Self.tailSize))

    let own = type == .getID ? BlockLayout.idSize + 1 : 1
    let last = DriverBuffer(tails.address(at: UInt64(tail + Self.tailSize - own)), count: UInt32(own))
    let header = DriverBuffer(heads.address(at: UInt64(head)), count: UInt32(BlockLayout.headerSize))
    if ranges.count > 0 {
      let list = DriverBuffer(
        heads.address(at: UInt64(head + BlockLayout.headerSize)), count: UInt32(ranges.count * BlockLayout.rangeSize))
      let pieces: InlineArray<2, DriverBuffer> = [header, list]
      _ = try queue.submit(pieces.span, data: data, direction, last: last)
    } else {
      let pieces: InlineArray<1, DriverBuffer> = [header]
      _ = try queue.submit(pieces.span, data: data, direction, last: last)
    }
    var sum = UInt64(own)
    if direction == .fromDevice { for i in data.indices { sum += UInt64(data[i].count) } }
    needed[id] = sum
    return ledger.begin(UInt16(truncatingIfNeeded: id))
  }

  mutating func publish(_ transport: any DriverTransport) { queue.publish(transport) }

  /// The next request that ended, kept ones first.
  mutating func reap() throws(DriverError) -> Completion? {
    if let kept = ledger.take() { return kept }
    return try pull()
  }

  /// What became of one request; nil while the device has it.
  mutating func reap(_ tag: RequestTag) throws(DriverError) -> Completion? {
    if let kept = ledger.take(tag) { return kept }
    while let completion = try pull() {
      if completion.tag == tag { return completion }
      ledger.keep(completion)
    }
    return nil
  }

  private mutating func pull() throws(DriverError) -> Completion? {
    guard let used = try queue.reap() else { return nil }
    let tail = Int(used.id) * Self.tailSize
    tails.showDriver(UInt64(tail), UInt64(Self.tailSize))
    let status = UInt8(truncatingIfNeeded: UInt32(littleEndian: tailCells.load32(at: tail + 28)) >> 24)
    var completion = Completion(tag: ledger.tag(of: used.id), written: used.written, error: nil)
    switch BlockStatus(rawValue: status) {
    case .ok:
      // Legacy devices may leave any length (§2.7.8.2): nothing can be learnt from it.
      let needed = needed[Int(used.id)]
      if !isLegacy, UInt64(used.written) < needed {
        completion.error = .incomplete(written: used.written, needed: needed)
      }
    case .ioError: completion.error = .ioError
    case .unsupported: completion.error = .unsupported
    default: completion.error = .status(status)
    }
    lastTail = tail
    return completion
  }

  /// Where the status of the request reaped last is.
  private var lastTail = 0

  /// The device ID that the request reaped last brought: bytes up to the first NUL, 20 at most.
  func lastID() -> [UInt8] {
    var bytes: [UInt8] = []
    // The bytes begin at an odd place; cells are even.
    for i in 0..<BlockLayout.idSize {
      let at = lastTail + Self.tailSize - 1 - BlockLayout.idSize + i
      let cell = UInt16(littleEndian: tailCells.load16(at: at & ~1))
      let byte = UInt8(truncatingIfNeeded: at & 1 == 0 ? cell : cell >> 8)
      if byte == 0 { break }
      bytes.append(byte)
    }
    return bytes
  }

  mutating func disarmCall() { queue.disarmCall() }
  mutating func armCall(after count: UInt16) -> Bool { queue.armCall(after: count) }
  mutating func restart(_ transport: any DriverTransport) throws(DriverError) { try queue.restart(transport) }

  consuming func close() throws(DriverError) {
    var first: DriverError?
    do throws(DriverError) { try queue.close() } catch { first = error }
    do throws(DMAError) { try heads.close() } catch { first = first ?? .dma(error) }
    do throws(DMAError) { try tails.close() } catch { first = first ?? .dma(error) }
    if let first { throw first }
  }

  consuming func abandon() {
    queue.abandon()
    heads.abandon()
    tails.abandon()
  }
}
