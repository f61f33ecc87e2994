internal import DMA
internal import HostIO
internal import Storage
internal import Virtio

/// The requests of one queue: those under way at the host by slot, the slot being the ring's tag.
///
/// One thread uses it. What the ring cannot take is done without it, the thread waiting, so every request ends; without
/// a ring that is all of them, one after the other.
struct InFlightRequests: ~Copyable {
  private let work: BlockWork
  // Before the slots: it ends first, and waits for the host to let go of the chains' memory.
  private var ring: DiskRing
  private var slots: SlotTable<InFlightRequest>
  private var policy: InlineIOPolicy
  /// Nothing new is begun: what is not done yet is left to the successor.
  private var isLeaving = false
  /// The slots that are still to be called off.
  private var unwanted: Range<Int>

  /// Requests begun before the driver hears of them: the last of a batch must not wait for ever more behind it.
  private static var batch: Int { 64 }

  /// - Parameters:
  ///   - ring: if it is none, nothing is under way between two calls.
  ///   - depth: most requests under way, at least 1.
  init(_ work: BlockWork, _ ring: consuming DiskRing, depth: Int, inline: Bool) {
    self.work = work
    self.ring = consume ring
    slots = SlotTable(capacity: depth)
    unwanted = depth..<depth
    policy = InlineIOPolicy(isOn: inline && !work.disk.file.isDirect)
  }

  // MARK: New requests

  mutating func take(from queue: inout Virtqueue) throws(QueueError) {
    work.begin(on: queue)
    // A driver that never pauses brings one round after the other, and what is done is not to wait for their end.
    if ring.hasPendingWork { drain(into: &queue) }
    // Also if one breaks the queue: those before it hold their mappings until the host has done them.
    defer { submit(into: &queue) }
    var left = Self.batch
    while left > 0 {
      // The ring's own bound comes first, so this is a belt. A completion begins the next round.
      if slots.isFull { return queue.rest() }
      guard let chain = try queue.next() else { return }
      left -= 1
      if chain.fault != nil {
        try work.refuse(chain, in: &queue)
        continue
      }
      switch work.classify(chain) {
      case .operation(let operation):
        guard let segments = operation.segments(of: chain) else {
          work.complete(chain, .ioError, in: &queue)
          continue
        }
        if ring.isThere {
          start(operation, chain, segments, in: &queue)
          continue
        }
        if operation.isFlush {
          // What comes after a flush waits for the next round, and what was done before it is shown first.
          queue.publish()
          left = 0
        }
        work.finish(DiskTransfer(operation, segments: segments), chain, in: &queue)
      case .getID:
        let outcome = work.getID(chain)
        work.complete(chain, outcome, in: &queue)
      case .ended(let status): work.complete(chain, BlockOutcome(status: status), in: &queue)
      case .withoutStatus: try work.refuse(chain, in: &queue)
      }
    }
  }

  private mutating func start(
    _ operation: DiskOperation, _ chain: consuming DescriptorChain, _ segments: Range<Int>, in queue: inout Virtqueue
  ) {
    let (position, count) = (operation.position, operation.count)
    switch operation.kind {
    // For a request alone: several cost less through the ring, which takes them all in one call.
    case .read where ring.unsubmitted == 0 && queue.isEmpty && policy.isWorthTrying:
      let result = work.disk.file.readImmediately(into: chain.writable, segments, at: position)
      policy.learn(from: result, wanted: count)
      if result == .read(count) { return work.complete(chain, BlockOutcome(status: .ok, filled: count), in: &queue) }
    case .write(durable: false) where policy.isWorthWriting(at: position, count: count):
      return work.finish(DiskTransfer(operation, segments: segments), chain, in: &queue)
    default: break
    }
    proceed(InFlightRequest(chain, operation, segments: segments), in: &queue)
  }

  /// Hands the next part of a request to the host, or ends the request.
  private mutating func proceed(_ request: consuming InFlightRequest, in queue: inout Virtqueue) {
    var queued = enqueue(&request)
    if queued == .full {
      submit(into: &queue, reaping: false)
      queued = enqueue(&request)
    }
    if queued == .queued { _ = slots.insert(request) } else { fallBack(request, in: &queue) }
  }

  /// Does what is left of a request without the ring.
  private mutating func fallBack(_ request: consuming InFlightRequest, in queue: inout Virtqueue) {
    let transfer = request.transfer
    work.finish(transfer, request.chain, in: &queue)
  }

  /// Queues a request's next part under the tag of the next free slot.
  private mutating func enqueue(_ request: inout InFlightRequest) -> IOUring.Queued {
    ring.queue(&request, of: work, tag: UInt64(slots.nextIndex))
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
    var budget = ReapingBudget()
    while true {
      let count = reap(&queue)
      for i in ring.completions.indices {
        let (tag, result) = (ring.completions.tag(i), ring.completions.result(i))
        if let request = slots.remove(Int(truncatingIfNeeded: tag)) { advance(request, result, in: &queue) }
      }
      guard ring.hasPendingWork else { return }
      guard budget.goesOn(after: count) else { return ring.comeBack() }
    }
  }

  private mutating func advance(_ request: consuming InFlightRequest, _ result: Int32, in queue: inout Virtqueue) {
    let completion = request.transfer.complete(result)
    if isLeaving, !completion.isEnd { return queue.leave(request.chain) }
    var status = BlockStatus.ok
    switch completion {
    case .done: break
    case .more: return proceed(request, in: &queue)
    case .fallback: return fallBack(request, in: &queue)
    case .failed(let call, let number):
      work.disk.faults.report("\(HostError(call, errno: number, subject: work.disk.file.path))")
      status = .ioError
    case .flush where work.isDurable:
      request.transfer.operation = DiskOperation(kind: .flush)
      return proceed(request, in: &queue)
    case .flush: break
    }
    let outcome = BlockOutcome(status: status, filled: request.transfer.filled)
    work.complete(request.chain, outcome, in: &queue)
  }

  // MARK: The ring

  /// Hands queued requests over. What the host does at once is completed at once.
  private mutating func submit(into queue: inout Virtqueue, reaping: Bool = true) {
    while ring.unsubmitted > 0 {
      guard enter(&queue) else {
        // The event brings us back, whether completions come or not.
        ring.comeBack()
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
    return ring.submit(work.disk.faults)
  }

  /// Takes completions; deferred work, such as copying what was read, is done by the call, if there is some.
  private mutating func reap(_ queue: inout Virtqueue) -> Int {
    let hasPendingWork = ring.hasPendingWork
    if hasPendingWork { queue.letGo() }
    defer { if hasPendingWork { queue.takeHold() } }
    return ring.reap()
  }

  /// Cancels what the host has not begun or can be kept from; the rest ends by itself. With `leaving` what is cancelled
  /// is left to the successor, otherwise it fails.
  mutating func callOff(leaving: Bool, from queue: inout Virtqueue) {
    if leaving { isLeaving = true }
    unwanted = 0..<slots.capacity
    reap(into: &queue)
  }

  private mutating func callOffMore(from queue: inout Virtqueue) {
    while let slot = unwanted.first {
      if slots.update(slot, { _ in }), ring.cancel(UInt64(slot)) == .full {
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
