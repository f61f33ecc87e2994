internal import Storage
internal import DMA
internal import HostIO
internal import Virtio

/// The requests of one queue that are under way at the host: chains by slot, the slot being the ring's tag.
///
/// One thread uses it. Requests that the ring cannot take are done synchronously, so every request ends.
struct InFlightRequests: ~Copyable {
  let work: BlockWork
  // Before the slots: it ends first, and waits until the host no longer uses the chains' memory.
  var ring: IOUring
  private var slots: SlotTable<InFlightRequest>
  private var completions = CompletionSet()
  private let event: EventFD
  private var shortcut: InlineIOPolicy
  /// Nothing new is begun: what is not done yet is left to the successor.
  private var isLeaving = false
  /// The slots that are still to be called off.
  private var unwanted: Range<Int>

  /// The tag of requests that are no flight: cancellations.
  static var noFlight: UInt64 { .max }
  /// Completions, and calls that may yield none, of one turn: then the queue's thread looks after its other work.
  private static var completionsPerTurn: Int { 256 }
  private static var looksPerTurn: Int { 64 }

  init(_ work: BlockWork, _ ring: consuming IOUring, _ event: EventFD, depth: Int, shortcuts: Bool) {
    self.work = work
    self.ring = ring
    self.event = event
    slots = SlotTable(capacity: depth)
    unwanted = depth..<depth
    shortcut = InlineIOPolicy(isOn: shortcuts && !work.disk.file.isDirect)
  }

  var count: Int { slots.count }

  // MARK: New requests

  mutating func take(from queue: inout Virtqueue) throws(QueueError) {
    work.begin(on: queue)
    // A driver that never pauses brings one round after the other, and completed requests must not wait for their end.
    if ring.hasPendingWork { drain(into: &queue) }
    do throws(QueueError) {
      try takeBatch(from: &queue)
    } catch {
      // Requests before the one that broke the queue hold their mappings until the host has done them.
      submit(into: &queue)
      throw error
    }
    submit(into: &queue)
  }

  private mutating func takeBatch(from queue: inout Virtqueue) throws(QueueError) {
    var left = BlockHandler.batch
    while left > 0 {
      // The ring's own bound comes first, so this is a belt. A completion begins the next round.
      if slots.isFull { return queue.rest() }
      guard let chain = try queue.next() else { break }
      left -= 1
      if chain.fault == nil { try begin(chain, in: &queue) } else { try work.refuse(chain, in: &queue) }
    }
  }

  private mutating func begin(_ chain: consuming DescriptorChain, in queue: inout Virtqueue) throws(QueueError) {
    switch BlockRequest(chain, work.terms, sectorCount: work.disk.sectorCount) {
    case .read(let position, let count): read(chain, position, count, &queue)
    case .write(let position, let count): write(chain, position, count, &queue)
    case .flush: proceed(InFlightRequest(chain, .flush), in: &queue)
    case .discard(let ranges): begin(chain, .discard, ranges, &queue)
    case .writeZeroes(let ranges): begin(chain, .writeZeroes, ranges, &queue)
    case .secureErase(let ranges): begin(chain, .secureErase, ranges, &queue)
    case .getID:
      let outcome = work.getID(chain)
      work.complete(chain, outcome, in: &queue)
    case .refused(let status): work.complete(chain, BlockOutcome(status: status), in: &queue)
    case .withoutStatus: try work.refuse(chain, in: &queue)
    }
  }

  private mutating func read(
    _ chain: consuming DescriptorChain, _ position: UInt64, _ count: Int, _ queue: inout Virtqueue
  ) {
    guard count > 0, let end = chain.writable.split(at: count) else {
      return work.complete(chain, count == 0 ? .ok : .ioError, in: &queue)
    }
    // For a request alone: several cost less through the ring, which takes them all in one call.
    if ring.unsubmitted == 0, queue.isEmpty, shortcut.isWorthTrying {
      let result = work.disk.file.readImmediately(into: chain.writable, 0..<end, at: position)
      shortcut.learn(from: result, wanted: count)
      if result == .read(count) { return work.complete(chain, BlockOutcome(status: .ok, filled: count), in: &queue) }
    }
    proceed(InFlightRequest(chain, .read, at: position, count: count, segments: 0..<end), in: &queue)
  }

  private mutating func write(
    _ chain: consuming DescriptorChain, _ position: UInt64, _ count: Int, _ queue: inout Virtqueue
  ) {
    guard count > 0, let start = chain.readable.split(at: BlockLayout.headerSize) else {
      return work.complete(chain, count == 0 ? .ok : .ioError, in: &queue)
    }
    let durable = work.isDurable
    if !durable, shortcut.isWorthWriting(at: position, count: count) {
      queue.letGo()
      let outcome = work.write(&chain, at: position, count: count, durable: false)
      queue.takeHold()
      queue.lookAtClock()
      return work.complete(chain, outcome, in: &queue)
    }
    let range = start..<chain.readable.segmentCount
    proceed(InFlightRequest(chain, .write(durable: durable), at: position, count: count, segments: range), in: &queue)
  }

  private mutating func begin(
    _ chain: consuming DescriptorChain, _ action: BlockRangeAction, _ ranges: Int, _ queue: inout Virtqueue
  ) {
    if let status = work.refusal(action, chain, ranges: ranges) {
      return work.complete(chain, BlockOutcome(status: status), in: &queue)
    }
    proceed(InFlightRequest(chain, .ranges(action), count: ranges), in: &queue)
  }

  /// Hands the next part of a request to the host, or ends the request.
  private mutating func proceed(_ flight: consuming InFlightRequest, in queue: inout Virtqueue) {
    var queued = prepare(&flight)
    if queued == .full {
      submit(into: &queue, reaping: false)
      queued = prepare(&flight)
    }
    if queued == .queued {
      _ = slots.insert(flight)
    } else {
      let outcome = finishHere(&flight, in: &queue)
      work.complete(flight.chain, outcome, in: &queue)
    }
  }

  /// Queues a flight's next part under the tag of the next free slot.
  private mutating func prepare(_ flight: inout InFlightRequest) -> IOUring.Queued {
    let file = work.disk.file
    let tag = UInt64(slots.nextIndex)
    switch flight.kind {
    case .read:
      flight.takePiece(file)
      return ring.read(
        file, into: flight.chain.writable, flight.piece, at: flight.position + UInt64(flight.done), tag: tag)
    case .write(let durable):
      flight.takePiece(file)
      return ring.write(
        file, from: flight.chain.readable, flight.piece, at: flight.position + UInt64(flight.done), durable: durable,
        tag: tag)
    case .flush:
      return ring.flush(file, tag: tag)
    case .ranges(let action):
      if flight.isFlushing { return ring.flush(file, tag: tag) }
      guard let range = BlockRequest.range(flight.done, of: flight.chain), work.refusal(action, range) == nil else {
        return .unsuitable
      }
      let (position, count) = (range.sector << 9, UInt64(range.sectorCount) << 9)
      switch action {
      case .discard: return ring.discard(file, at: position, count: count, tag: tag)
      case .writeZeroes where work.mayUnmap(range): return ring.discard(file, at: position, count: count, tag: tag)
      case .writeZeroes: return ring.writeZeroes(file, at: position, count: count, tag: tag)
      case .secureErase: return .unsuitable
      }
    }
  }

  /// Does what is left of a request on the spot, which may take as long as it takes.
  private func finishHere(_ flight: inout InFlightRequest, in queue: inout Virtqueue) -> BlockOutcome {
    queue.letGo()
    defer {
      queue.takeHold()
      queue.lookAtClock()
    }
    switch flight.kind {
    case .read: return work.read(&flight.chain, at: flight.position, count: flight.count, from: flight.done)
    case .write(let durable):
      return work.write(&flight.chain, at: flight.position, count: flight.count, durable: durable, from: flight.done)
    case .flush: return work.flush()
    case .ranges(let action):
      return flight.isFlushing ? work.flush() : work.perform(action, flight.chain, ranges: flight.done..<flight.count)
    }
  }

  // MARK: Completions

  /// Takes what the host has done, and starts what follows from it.
  mutating func reap(into queue: inout Virtqueue) {
    drain(into: &queue)
    submit(into: &queue)
    callOffMore(from: &queue)
  }

  /// Until the kernel has nothing for us: it does only part of its deferred work at a time, and signals the event for
  /// none of the rest. Or until a turn's work is done, and the event brings us back.
  private mutating func drain(into queue: inout Virtqueue) {
    var (completionsLeft, looksLeft) = (Self.completionsPerTurn, Self.looksPerTurn)
    while true {
      let count = reap(&queue)
      for i in completions.indices {
        let (tag, result) = (completions.tag(i), completions.result(i))
        if let flight = slots.remove(Int(truncatingIfNeeded: tag)) { advance(flight, result, in: &queue) }
      }
      guard ring.hasPendingWork else { return }
      completionsLeft -= count
      looksLeft -= 1
      if completionsLeft <= 0 || looksLeft <= 0 {
        event.signal()
        return
      }
    }
  }

  private mutating func advance(_ flight: consuming InFlightRequest, _ result: Int32, in queue: inout Virtqueue) {
    let outcome: BlockOutcome
    let landing = flight.landed(result)
    if isLeaving, !landing.isEnd { return queue.leave(flight.chain) }
    switch landing {
    case .done: outcome = BlockOutcome(status: .ok, filled: flight.filled)
    case .more: return proceed(flight, in: &queue)
    case .elsewhere: outcome = finishHere(&flight, in: &queue)
    case .failed(let call, let number):
      work.disk.faults.report("\(HostError(call, errno: number, subject: work.disk.file.path))")
      outcome = BlockOutcome(status: .ioError, filled: flight.filled)
    case .flush:
      if !work.isDurable {
        outcome = .ok
        break
      }
      flight.isFlushing = true
      return proceed(flight, in: &queue)
    }
    work.complete(flight.chain, outcome, in: &queue)
  }

  // MARK: The ring

  /// Hands queued requests over. What the host does at once is completed at once.
  private mutating func submit(into queue: inout Virtqueue, reaping: Bool = true) {
    while ring.unsubmitted > 0 {
      guard enter(&queue) else {
        // The event wakes us again, even if the others fail.
        event.signal()
        return
      }
      if reaping { drain(into: &queue) } else { return }
    }
  }

  /// The call itself. Data in the page cache is copied at once, for many requests together: the round releases its hold
  /// meanwhile. False when the host is out of some resource for the moment.
  private mutating func enter(_ queue: inout Virtqueue) -> Bool {
    queue.letGo()
    defer { queue.takeHold() }
    do throws(HostError) {
      try ring.submit()
      return true
    } catch {
      work.disk.faults.report("\(error)")
      return false
    }
  }

  /// Takes completions; deferred work, such as copying what was read, is done by the call, if there is some.
  private mutating func reap(_ queue: inout Virtqueue) -> Int {
    guard ring.hasPendingWork else { return ring.reap(into: &completions) }
    queue.letGo()
    defer { queue.takeHold() }
    return ring.reap(into: &completions)
  }

  /// Cancels requests that the host has not begun or can stop; the rest ends by itself. With `leaving` cancelled
  /// requests are left to the successor, otherwise they fail.
  mutating func callOff(leaving: Bool, from queue: inout Virtqueue) {
    if leaving { isLeaving = true }
    unwanted = 0..<slots.capacity
    reap(into: &queue)
  }

  private mutating func callOffMore(from queue: inout Virtqueue) {
    while let slot = unwanted.first {
      if slots.update(slot, { _ in }), ring.cancel(UInt64(slot), tag: Self.noFlight) == .full {
        let before = ring.unsubmitted
        submit(into: &queue)
        // Without room now, completions bring us back.
        if before == 0 || ring.unsubmitted > 0 { return }
        continue
      }
      unwanted = slot + 1..<unwanted.upperBound
    }
    submit(into: &queue)
  }
}
