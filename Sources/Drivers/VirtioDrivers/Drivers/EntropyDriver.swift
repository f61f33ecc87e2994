internal import DMA
public import DriverDMA
public import Virtio

/// The driver of a virtio-rng device (§5.4). One thread uses it.
public final class EntropyDriver: VirtioDriver {
  private let transport: any DriverTransport
  private let wait: BoundedWait
  private var queue: MappedQueue?
  private var ledger = RequestLedger(size: 1)
  /// What was negotiated.
  public let features: Features

  /// Takes the device over and starts its queue (§3.1.1).
  ///
  /// - Throws: what made the driver give up; the device's status is FAILED then, and no memory is left to it.
  public init(
    _ transport: any DriverTransport, on platform: DriverPlatform, options: DriverOptions = DriverOptions()
  ) throws(DriverError) {
    guard transport.deviceID == .entropy else { throw .wrongDevice(transport.deviceID) }
    let features = try transport.initialize(
      accepting: DriverOptions.ringFeatures, on: platform, withholding: options.withheld, waiting: options.wait)
    self.transport = transport
    self.features = features
    wait = options.wait
    queue = nil
    do throws(DriverError) {
      let made = try MappedQueue(
        transport, index: 0, features: features, mapper: platform.mapper(negotiated: features), pages: platform.pages,
        options: options.queue)
      ledger = RequestLedger(size: made.size)
      made.enable(transport)
      queue = consume made
      try transport.begin()
    } catch {
      try? stop()
      transport.giveUp()
      throw error
    }
  }

  deinit { try? stop() }

  /// The most pieces of a request, after those that are too long for one mapping were cut.
  public var maxSegments: Int { queue?.maxPieces ?? 0 }
  /// Requests that the device has.
  public var outstanding: Int { queue?.outstanding ?? 0 }

  /// Asks for random bytes. They are the driver's when the request is reaped, as many as the completion says.
  public func submit(_ data: Span<GuestSegment>) throws(DriverError) -> RequestTag {
    guard queue != nil else { throw .stopped }
    let none = InlineArray<0, DriverBuffer> { _ in DriverBuffer(DMAAddress(0), count: 0) }
    return ledger.begin(try queue!.submit(none.span, data: data, .fromDevice, last: nil))
  }

  /// Makes what was submitted available to the device, and notifies it if it wants that.
  public func publish() { if queue != nil { queue!.publish(transport) } }

  /// The next request that ended, or nil.
  ///
  /// - Throws: when the device broke a rule of the ring: nothing completes any more before the driver is stopped.
  public func reap() throws(DriverError) -> Completion? {
    guard queue != nil else { throw .stopped }
    if let kept = ledger.take() { return kept }
    return try pull()
  }

  private func pull() throws(DriverError) -> Completion? {
    guard let used = try queue!.reap() else { return nil }
    var completion = Completion(tag: ledger.tag(of: used.id), written: used.written, error: nil)
    // A device that is done has brought a byte or more (§5.4.6.2).
    if used.written == 0 { completion.error = .incomplete(written: 0, needed: 1) }
    return completion
  }

  /// Waits for one request, which is published first if it was not. Others that end meanwhile are kept for ``reap()``.
  ///
  /// - Throws: ``DriverError/timeout`` when the device does not answer: the request is still the device's.
  public func complete(_ tag: RequestTag) throws(DriverError) -> Completion {
    guard queue != nil else { throw .stopped }
    queue!.publish(transport)
    if let kept = ledger.take(tag) { return kept }
    var result: Completion?
    try transport.wait(wait) { () throws(DriverError) in
      while let completion = try self.pull() {
        if completion.tag == tag {
          result = completion
          return true
        }
        self.ledger.keep(completion)
      }
      return false
    }
    guard let result else { throw .timeout }
    return result
  }

  /// Random bytes into memory, from its start on. Returns how many: one or more, and fewer than asked for if the device
  /// likes.
  public func fill(_ data: Span<GuestSegment>) throws(DriverError) -> Int {
    let completion = try complete(submit(data))
    if let error = completion.error { throw error }
    return Int(completion.written)
  }

  public var byteCount: UInt64? { nil }
  public func receive(from place: UInt64, into data: Span<GuestSegment>) throws(DriverError) -> Int { try fill(data) }
  public func send(to place: UInt64, from data: Span<GuestSegment>) throws(DriverError) { throw .request }

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
