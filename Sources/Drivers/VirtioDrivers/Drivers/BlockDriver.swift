internal import DMA
public import DriverDMA
public import Virtio

/// The driver of a virtio-blk device: one request queue, requests that complete in any order (§5.2).
///
/// Requests are submitted, published together, and reaped later; or done one by one with the functions that wait. One
/// thread uses it. Buffers are the device's from submitting until reaping: leave them alone meanwhile.
public final class BlockDriver: VirtioDriver {
  private let transport: any DriverTransport
  private let wait: BoundedWait
  private var queue: BlockQueue?
  /// What was negotiated.
  public let features: Features
  /// The disk's size when the driver started, in sectors of 512 bytes.
  public let capacity: UInt64
  /// The disk's block size, bytes.
  public let blockSize: UInt32
  /// The most sectors of a discard, and of a write zeroes range; 0 where the device serves none.
  public let maxDiscardSectors: UInt32
  public let maxWriteZeroesSectors: UInt32
  private let maxDiscardRanges: Int
  private let maxWriteZeroesRanges: Int

  /// Takes the device over and starts its first queue (§3.1.1).
  ///
  /// - Throws: what made the driver give up; the device's status is FAILED then, and no memory is left to it.
  public init(
    _ transport: any DriverTransport, on platform: DriverPlatform, options: DriverOptions = DriverOptions()
  ) throws(DriverError) {
    guard transport.deviceID == .block else { throw .wrongDevice(transport.deviceID) }
    let own: Features = [
      .blockSizeMax, .blockSegMax, .blockReadOnly, .blockBlockSize, .blockFlush, .blockDiscard, .blockWriteZeroes,
    ]
    let features = try transport.initialize(
      accepting: own.union(DriverOptions.ringFeatures), on: platform, withholding: options.withheld,
      waiting: options.wait)
    self.transport = transport
    self.features = features
    wait = options.wait
    var fields = Fields()
    var looks = 0
    repeat {
      let generation = transport.configurationGeneration
      fields = Fields(transport)
      looks += 1
      // A device that changes for ever gets what was read last.
      if generation == transport.configurationGeneration { break }
    } while looks < 100
    capacity = fields.capacity
    blockSize = features.contains(.blockBlockSize) ? fields.blockSize : UInt32(BlockLayout.sectorSize)
    maxDiscardSectors = features.contains(.blockDiscard) ? fields.discard.sectors : 0
    maxDiscardRanges = min(Int(clamping: fields.discard.ranges), BlockQueue.maxRanges)
    maxWriteZeroesSectors = features.contains(.blockWriteZeroes) ? fields.zeroes.sectors : 0
    maxWriteZeroesRanges = min(Int(clamping: fields.zeroes.ranges), BlockQueue.maxRanges)
    var size = options.queue
    if features.contains(.blockSegMax), fields.segMax > 0 {
      size.segments = min(size.segments, Int(clamping: fields.segMax))
    }
    let sizeMax = features.contains(.blockSizeMax) && fields.sizeMax > 0 ? fields.sizeMax : .max
    queue = nil
    do throws(DriverError) {
      queue = try BlockQueue(
        transport, index: 0, features: features, mapper: platform.mapper(negotiated: features), pages: platform.pages,
        options: size,
        sizeMax: sizeMax)
      try transport.begin()
    } catch {
      try? stop()
      transport.giveUp()
      throw error
    }
  }

  deinit { try? stop() }

  private struct Fields {
    var capacity: UInt64 = 0
    var sizeMax: UInt32 = 0
    var segMax: UInt32 = 0
    var blockSize: UInt32 = 0
    var discard: (sectors: UInt32, ranges: UInt32) = (0, 0)
    var zeroes: (sectors: UInt32, ranges: UInt32) = (0, 0)

    init() {}
    /// §5.2.4.
    init(_ transport: any DriverTransport) {
      capacity = transport.readConfiguration(UInt64.self, at: 0)
      sizeMax = transport.readConfiguration(UInt32.self, at: 8)
      segMax = transport.readConfiguration(UInt32.self, at: 12)
      blockSize = transport.readConfiguration(UInt32.self, at: 20)
      discard = (transport.readConfiguration(UInt32.self, at: 36), transport.readConfiguration(UInt32.self, at: 40))
      zeroes = (transport.readConfiguration(UInt32.self, at: 48), transport.readConfiguration(UInt32.self, at: 52))
    }
  }

  /// Whether nothing can be written.
  public var isReadOnly: Bool { features.contains(.blockReadOnly) }
  /// The most pieces of data in a request, after those that are too long for one mapping were cut.
  public var maxSegments: Int { queue?.maxSegments ?? 0 }
  /// Requests that the device has.
  public var outstanding: Int { queue?.outstanding ?? 0 }
  /// Descriptors that no request occupies.
  public var free: Int { queue?.free ?? 0 }

  // MARK: Submitting

  private func add(
    _ type: BlockRequestType, _ sector: UInt64, _ ranges: Span<BlockRange>, _ data: Span<GuestSegment>,
    _ direction: DMADirection
  ) throws(DriverError) -> RequestTag {
    guard queue != nil else { throw .stopped }
    return try queue!.submit(type, sector: sector, ranges: ranges, data: data, direction)
  }

  private func checkData(_ sector: UInt64, _ data: Span<GuestSegment>) throws(DriverError) {
    var bytes: UInt64 = 0
    for i in data.indices { bytes += UInt64(data[i].count) }
    let sectors = bytes / UInt64(BlockLayout.sectorSize)
    guard bytes > 0, bytes % UInt64(BlockLayout.sectorSize) == 0, sector <= capacity, sectors <= capacity - sector
    else { throw .request }
  }

  /// Reads from a sector on into memory.
  public func submitRead(_ sector: UInt64, into data: Span<GuestSegment>) throws(DriverError) -> RequestTag {
    try checkData(sector, data)
    let none = InlineArray<0, BlockRange> { _ in BlockRange(sector: 0, sectorCount: 0) }
    return try add(.read, sector, none.span, data, .fromDevice)
  }

  /// Writes memory from a sector on.
  public func submitWrite(_ sector: UInt64, from data: Span<GuestSegment>) throws(DriverError) -> RequestTag {
    try checkData(sector, data)
    guard !isReadOnly else { throw .request }
    let none = InlineArray<0, BlockRange> { _ in BlockRange(sector: 0, sectorCount: 0) }
    return try add(.write, sector, none.span, data, .toDevice)
  }

  /// Makes what was written, and has completed, durable.
  public func submitFlush() throws(DriverError) -> RequestTag {
    guard features.contains(.blockFlush) else { throw .request }
    return try addBare(.flush)
  }

  private func addBare(_ type: BlockRequestType) throws(DriverError) -> RequestTag {
    let none = InlineArray<0, BlockRange> { _ in BlockRange(sector: 0, sectorCount: 0) }
    let empty = InlineArray<0, GuestSegment> { _ in GuestSegment(GuestAddress(0), count: 0) }
    return try add(type, 0, none.span, empty.span, .toDevice)
  }

  /// Makes the contents of ranges undefined: at most 8, and as many as the device takes.
  public func submitDiscard(_ ranges: Span<BlockRange>) throws(DriverError) -> RequestTag {
    try addRanges(.discard, ranges, most: maxDiscardSectors, count: maxDiscardRanges)
  }

  /// Makes ranges read as zeroes: at most 8, and as many as the device takes.
  public func submitWriteZeroes(_ ranges: Span<BlockRange>) throws(DriverError) -> RequestTag {
    try addRanges(.writeZeroes, ranges, most: maxWriteZeroesSectors, count: maxWriteZeroesRanges)
  }

  private func addRanges(
    _ type: BlockRequestType, _ ranges: Span<BlockRange>, most: UInt32, count: Int
  ) throws(DriverError) -> RequestTag {
    guard ranges.count > 0, ranges.count <= count, !isReadOnly else { throw .request }
    for i in ranges.indices {
      let (sector, sectors) = (ranges[i].sector, ranges[i].sectorCount)
      guard sectors > 0, sectors <= most, sector <= capacity, UInt64(sectors) <= capacity - sector else {
        throw .request
      }
    }
    let empty = InlineArray<0, GuestSegment> { _ in GuestSegment(GuestAddress(0), count: 0) }
    return try add(type, 0, ranges, empty.span, .toDevice)
  }

  /// Makes what was submitted available to the device, and notifies it if it wants that.
  public func publish() { if queue != nil { queue!.publish(transport) } }

  // MARK: Completing

  /// The next request that ended, or nil. The memory of its data is the driver's again.
  ///
  /// - Throws: when the device broke a rule of the ring: nothing completes any more before the driver is stopped.
  public func reap() throws(DriverError) -> Completion? {
    guard queue != nil else { throw .stopped }
    return try queue!.reap()
  }

  /// Waits for one request, which is published first if it was not. Others that end meanwhile are kept for ``reap()``.
  ///
  /// - Throws: ``DriverError/timeout`` when the device does not answer: the request is still the device's.
  public func complete(_ tag: RequestTag) throws(DriverError) -> Completion {
    guard queue != nil else { throw .stopped }
    queue!.publish(transport)
    var result: Completion?
    try transport.wait(wait) { () throws(DriverError) in
      result = try self.queue!.reap(tag)
      return result != nil
    }
    guard let result else { throw .timeout }
    return result
  }

  /// As ``complete(_:)``, and a request that failed is an error.
  private func finish(_ tag: RequestTag) throws(DriverError) {
    if let error = try complete(tag).error { throw error }
  }

  /// Reads, and waits for it.
  public func read(_ sector: UInt64, into data: Span<GuestSegment>) throws(DriverError) {
    try finish(submitRead(sector, into: data))
  }
  /// Writes, and waits for it.
  public func write(_ sector: UInt64, from data: Span<GuestSegment>) throws(DriverError) {
    try finish(submitWrite(sector, from: data))
  }
  /// Flushes, and waits for it.
  public func flush() throws(DriverError) { try finish(submitFlush()) }
  /// Discards, and waits for it.
  public func discard(_ ranges: Span<BlockRange>) throws(DriverError) { try finish(submitDiscard(ranges)) }
  /// Writes zeroes, and waits for it.
  public func writeZeroes(_ ranges: Span<BlockRange>) throws(DriverError) { try finish(submitWriteZeroes(ranges)) }

  public var byteCount: UInt64? { capacity * UInt64(BlockLayout.sectorSize) }
  public func receive(from place: UInt64, into data: Span<GuestSegment>) throws(DriverError) -> Int {
    try read(place / UInt64(BlockLayout.sectorSize), into: data)
    return GuestSegment.byteCount(data)
  }
  public func send(to place: UInt64, from data: Span<GuestSegment>) throws(DriverError) {
    try write(place / UInt64(BlockLayout.sectorSize), from: data)
  }

  /// The disk's identity, up to 20 bytes.
  public func readID() throws(DriverError) -> [UInt8] {
    try finish(addBare(.getID))
    return queue?.lastID() ?? []
  }

  /// As `DriverQueue/disarmCall()`.
  public func disarmCall() { if queue != nil { queue!.disarmCall() } }
  /// As `DriverQueue/armCall(after:)`.
  public func armCall(after count: UInt16 = 0) -> Bool { queue != nil ? queue!.armCall(after: count) : false }

  // MARK: Ending

  /// Takes the queue back from the device with all requests that the device still has, and starts it again, empty
  /// (§2.6.1). Requests that the device had never complete; their memory is the driver's again.
  public func restartQueue() throws(DriverError) {
    guard queue != nil else { throw .stopped }
    guard features.contains(.ringReset) else { throw .missing(.ringReset) }
    try queue!.restart(transport)
  }

  /// Resets the device and takes all memory back. Requests that it had never complete.
  ///
  /// - Throws: ``DriverError/reset(_:)`` when the device does not come out of its reset: what it was given stays its
  ///   for ever (R179).
  public func stop() throws(DriverError) {
    guard let queue = queue.take() else { return }
    do throws(DriverError) {
      try transport.reset(waiting: wait)
    } catch {
      queue.abandon()
      throw error
    }
    try queue.close()
  }
}
