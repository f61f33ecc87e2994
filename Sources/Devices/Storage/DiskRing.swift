public import DMA
public import HostIO

/// The ring by which operations on disks are handed to the host, many at once, each under a tag of its device; or none,
/// and then its device does all of them on the spot. One thread uses it, and it may be made on another one before.
@usableFromInline package struct DiskRing: ~Copyable {
  @usableFromInline var ring: IOUring?
  @usableFromInline let event: EventFD?
  /// What ``reap()`` took last.
  @usableFromInline package var completions = CompletionSet()

  /// The tag of what is no operation: cancellations whose answer is not waited for.
  package static var noRequest: UInt64 { .max }

  /// No ring.
  package init() {
    ring = nil
    event = nil
  }

  /// - Parameters:
  ///   - depth: operations under way.
  ///   - event: is signalled for completions.
  ///   - file: where most operations are.
  package init(depth: Int, signalling event: EventFD, for file: BlockFile) throws(HostError) {
    let ring = try IOUring(entries: depth)
    try ring.signal(event)
    // Only saves a look-up per request.
    try? ring.register(file)
    self.ring = consume ring
    self.event = event
  }

  /// Whether there is one.
  @inlinable package var isThere: Bool { ring != nil }

  @inlinable package var hasPendingWork: Bool {
    switch ring {
    case .some(let ring): ring.hasPendingWork
    case nil: false
    }
  }
  /// Operations queued and not submitted.
  @inlinable package var unsubmitted: Int {
    switch ring {
    case .some(let ring): ring.unsubmitted
    case nil: 0
    }
  }
  /// Operations queued or submitted, and not reaped.
  package var inFlight: Int {
    switch ring {
    case .some(let ring): ring.inFlight
    case nil: 0
    }
  }

  /// Queues the next part of a transfer.
  ///
  /// - Parameter range: the range with the index that it is given, checked; nil: it cannot be had.
  @inlinable package mutating func queue(
    _ transfer: inout DiskTransfer, of file: BlockFile, _ readable: borrowing BufferSegments,
    _ writable: borrowing BufferSegments, tag: UInt64, range: (Int) -> DiskRange?
  ) -> IOUring.Queued {
    switch transfer.operation.kind {
    case .read:
      transfer.takePiece(file, readable, writable)
      return ring?.read(file, into: writable, transfer.piece, at: transfer.position, tag: tag) ?? .unsuitable
    case .write(let durable):
      transfer.takePiece(file, readable, writable)
      return ring?.write(
        file, from: readable, transfer.piece, at: transfer.position, durable: durable, tag: tag) ?? .unsuitable
    case .ranges(let action):
      guard let range = range(transfer.done) else { return .unsuitable }
      return queue(action, range, of: file, tag: tag)
    case .flush: return ring?.flush(file, tag: tag) ?? .unsuitable
    }
  }

  @usableFromInline mutating func queue(
    _ action: DiskRangeAction, _ range: DiskRange, of file: BlockFile, tag: UInt64
  ) -> IOUring.Queued {
    if action == .secureErase { return .unsuitable }
    let queued =
      action == .discard || range.mayUnmap
      ? ring?.discard(file, at: range.position, count: range.count, tag: tag)
      : ring?.writeZeroes(file, at: range.position, count: range.count, tag: tag)
    return queued ?? .unsuitable
  }

  /// Queues the end of the operation tagged `victim`, if the host can still be kept from it.
  package mutating func cancel(_ victim: UInt64, tag: UInt64 = DiskRing.noRequest) -> IOUring.Queued {
    ring?.cancel(victim, tag: tag) ?? .unsuitable
  }

  /// Hands over what is queued. What is in the page cache is copied meanwhile. False when the host is out of some
  /// resource for the moment, which is reported.
  package mutating func submit(_ faults: FaultReporter) -> Bool {
    do throws(HostError) {
      try ring?.submit()
      return true
    } catch {
      faults.report("\(error)")
      return false
    }
  }

  /// Takes completions into ``completions``, and returns how many. Deferred work, such as copying what was read, is
  /// done by the call, if there is some.
  @inlinable package mutating func reap() -> Int { ring?.reap(into: &completions) ?? 0 }

  /// Waits until something has completed, or for a moment.
  package mutating func wait(_ faults: FaultReporter) {
    do throws(HostError) {
      try ring?.submitAndWait(1, timeout: .milliseconds(100))
    } catch {
      faults.report("\(error)")
    }
  }

  /// Signals the event, so that its thread comes back to what it leaves now.
  package func comeBack() { event?.signal() }
}

/// How much of the ring's work is done in one turn: then a thread looks after its other work.
@usableFromInline package struct ReapingBudget {
  // Completions, and calls that may yield none.
  @usableFromInline var completions = 256
  @usableFromInline var calls = 64
  @inlinable package init() {}

  /// Whether there may be another call after one that yielded `count`.
  @inlinable package mutating func goesOn(after count: Int) -> Bool {
    completions -= count
    calls -= 1
    return completions > 0 && calls > 0
  }
}
