public import DMA

/// The device side of a virtqueue, split or packed (§2.7, §2.8).
///
/// A worker drives it in rounds: ``beginRound()``, then ``next()`` and ``complete(_:written:)`` as often as there is
/// work, ``takeCall()``, ``armKick()``, ``endRound()``. Between rounds it holds nothing but the leases of chains in
/// flight. Addresses become memory when a chain is popped; the device that pops it sees memory only.
///
/// One thread uses it. After a ``QueueError`` it is retired: it yields nothing more and writes nothing more.
public struct Virtqueue: ~Copyable {
  public let index: Int
  public let layout: QueueLayout
  public let isPacked: Bool
  let hasEventIndex: Bool
  let hasIndirect: Bool
  let isInOrder: Bool

  var iotlb: IOTLB
  var pool: SegmentPool
  var scratch = IndirectScratch()

  /// The three areas; `none` until resolved.
  var descriptorArea = RingMemory.none
  var driverArea = RingMemory.none
  var deviceArea = RingMemory.none
  /// The areas are those of the round's generation.
  var isResolved = false
  /// The areas are being taken away and cannot be resolved anew yet. Chains in flight hold them: they are still given
  /// back there, each before its hold ends, so that a queue that stops now has lost none. Nothing else touches them.
  var isWithdrawn = false
  var isRetired = false
  /// The areas are copies of memory that another process has; see ``RingMemory/isRemote``.
  var isRemote = false
  var outbox = Outbox()
  /// Mappings are being taken away: this round must end before more is resolved.
  var mustRenew = false
  /// The handler has nothing to do for what is still available.
  var isResting = false
  var round = RoundBudget()
  /// The queue stops: no chain is taken from the ring any more.
  public internal(set) var isClosing = false
  /// Chains that a predecessor left stay where they are recorded.
  var leavesReplays = false
  /// The next chain, or the ring itself, waits for a translation.
  public internal(set) var isPending = false

  var available: UInt16
  var availableWrap: Bool
  var used: UInt16
  var usedWrap: Bool
  var isUsedKnown: Bool
  var hasResumed = false
  /// What was wrong with the chain at the head, while the page of its status is asked for.
  var decided: DMAFault?
  /// Split: the available index last read.
  var seenAvailable: UInt16
  /// Packed: the flags that make the first unpublished element the driver's, and where they go.
  var firstUsed: (at: Int, flags: UInt16) = (0, 0)
  /// Used entries written and not yet visible to the driver.
  var unpublished: UInt16 = 0
  /// Split: entries, packed: slots, used since the driver was last asked whether it wants a call.
  var usedSinceCall: UInt32 = 0
  /// A predecessor has used entries before, and may have died between showing them and the call.
  private var owesCall = false
  /// The driver's `flags` as last written by us, so that we never read our own area (R054).
  var suppressed = false

  var popped: UInt32 = 0
  /// What chains in flight hold.
  var held: HoldBudget
  var completed: UInt32 = 0
  /// Slots of the ring that were taken, one by each chain of a split ring, and are not the driver's again: no more than
  /// its size.
  var outstanding = 0
  var order: InOrderWindow
  var recorder: (any InflightRecorder)?
  var again: [InflightChain]
  /// Packed, with a recorder: the descriptors of the chain that is walked.
  var logged: [RingDescriptor] = []
  public let statistics: QueueStatistics
  var counts: QueueStatistics.Counts

  struct UsedEntry {
    var id: UInt16
    var slots: UInt16
    var written: UInt32
    var record: UInt16
  }

  /// - Parameters:
  ///   - waiter: woken when a pending translation arrived; it should kick the queue.
  ///   - recorder: where chains in flight are written down, if anywhere. What a predecessor left there comes first.
  /// - Throws: the rule of the layout that is broken. Whether the areas can be reached shows in the first round (R041).
  public init(
    index: Int, layout: QueueLayout, features: Features, in space: any DMASpace,
    waking waiter: (any TranslationWaiter)? = nil,
    resumingAt state: QueueState = .initial, recorder: (any InflightRecorder)? = nil,
    statistics: QueueStatistics = QueueStatistics()
  ) throws(QueueError) {
    let isPacked = features.contains(.ringPacked)
    if let fault = layout.fault(packed: isPacked) { throw fault }
    if isPacked, state.available >= layout.size || (state.used ?? 0) >= layout.size {
      throw .descriptorIndex(state.available)
    }
    self.index = index
    self.layout = layout
    self.isPacked = isPacked
    hasEventIndex = features.contains(.eventIndex)
    hasIndirect = features.contains(.indirectDescriptors)
    isInOrder = features.contains(.inOrder)
    let areas = layout.areas(packed: isPacked, eventIndex: hasEventIndex)
    iotlb = IOTLB(space, waking: waiter, areas: areas)
    held = HoldBudget(hearsOfChains: iotlb.hearsOfChains)
    // One for each chain that may be in flight, so that none is made for a request.
    pool = iotlb.makePool(keeping: Int(layout.size))
    available = state.available
    availableWrap = state.availableWrap
    used = state.used ?? state.available
    usedWrap = state.usedWrap
    isUsedKnown = state.used != nil
    seenAvailable = state.available
    order = InOrderWindow(size: features.contains(.inOrder) ? layout.size : nil)
    self.recorder = recorder
    again = []
    self.statistics = statistics
    counts = statistics.counts
  }

  /// How many chains were popped, here and below: it overflows.
  public var taken: UInt32 { popped }

  /// Chains popped and not completed.
  public var inFlight: Int { Int(popped &- completed) }

  /// Where the queue is, for ``init(index:layout:features:in:waking:resumingAt:recorder:statistics:)`` of a successor.
  public var state: QueueState {
    QueueState(available: available, availableWrap: availableWrap, used: used, usedWrap: usedWrap)
  }

  /// Begins a round: holds the mappings and makes sure the ring areas are the ones in force. Afterwards the queue may
  /// be ``isPending``: then end the round and wait for the waiter.
  public mutating func beginRound() throws(QueueError) {
    guard !isRetired else { return }
    if iotlb.beginRound() { withdrawAreas() }
    if let fault = outbox.fault { try giveUp(fault) }
    mustRenew = false
    isResting = false
    round.begin(popped)
    isPending = false
    guard !isResolved else { return }
    do throws(DMAInterruption) {
      // A chain may be waiting, too: what it asked for is still its own, and whether that can help is for its walk to
      // say.
      defer { iotlb.endWalk(repeats: true) }
      try resolveAreas()
    } catch {
      guard case .fault(let fault) = error else {
        isPending = true
        return
      }
      try giveUp(fault)
    }
  }

  private mutating func giveUp(_ fault: DMAFault) throws(QueueError) {
    unresolve()
    isRetired = true
    iotlb.space.report(fault)
    counts.faults &+= 1
    iotlb.endRound()
    throw .ring(fault)
  }

  /// Ends a round: what is published is visible, and mappings may go.
  public mutating func endRound() {
    publish()
    iotlb.dirtyLog?.announce()
    iotlb.endRound()
    statistics.store(counts)
  }

  /// Ends the queue's work for good, as a ``QueueError`` does.
  public mutating func retire() { isRetired = true }

  /// The next chain, or nil: the ring is empty, a translation is pending, or the round has to be renewed.
  public mutating func next() throws(QueueError) -> DescriptorChain? {
    guard !isRetired, isResolved, !isPending, !takesNothing else { return nil }
    if iotlb.isStale { renewHold() }
    if mustRenew || !round.mayTake(popped) {
      mustRenew = true
      return nil
    }
    // Nothing is lost: chains in flight end, and that brings another look.
    if held.isWaitedFor || held.isSpent, inFlight > 0 {
      held.wait()
      return nil
    }
    do throws(QueueError) {
      return isPacked ? try nextPacked() : try nextSplit()
    } catch {
      isRetired = true
      throw error
    }
  }

  /// Whether nothing is available now. A look only: nothing is popped.
  public var isEmpty: Bool {
    guard !isRetired, isResolved else { return true }
    if !again.isEmpty { return false }
    if isClosing { return true }
    // What a copy says now is a message away: a look of its own, and no error.
    if isRemote { return !isRemotelyAvailable }
    return isPacked ? !isPackedAvailable : driverArea.loadAcquire16(at: 2) == available.littleEndian
  }

  /// Gives a chain back to the driver with the number of bytes written, from the start of its device-writable memory
  /// on. The driver sees it at the next ``publish()``.
  public mutating func complete(_ chain: consuming DescriptorChain, written: Int) {
    if let log = iotlb.dirtyLog { chain.memory.markDirty(log) }
    if chain.memory.hasCopies { outbox.add(chain.memory.remoteWrites(first: written, andLast: true)) }
    counts.completions &+= 1
    counts.readableBytes &+= UInt64(truncatingIfNeeded: chain.readable.byteCount)
    // Never more than there is room for (§2.7.8.2).
    let written = UInt32(clamping: min(written, chain.writable.byteCount))
    counts.writtenBytes &+= UInt64(written)
    // Before the driver can see the chain used, and give its addresses another meaning.
    give(chain)
    let entry = UsedEntry(id: chain.id, slots: chain.slots, written: written, record: chain.record)
    if isInOrder { emitInOrder(entry, chain.sequence) } else { emit(entry) }
    completed &+= 1
    if outbox.byteCount > Outbox.limit { publish() }
    if isWithdrawn {
      publish()
      if inFlight == 0 { unresolve() }
    }
    // Only now may a drain that waits for the chain go on.
    pool.give(back: chain.memory)
  }

  /// Makes completed chains visible to the driver now. A handler that is about to wait for something slow calls it; the
  /// end of a round does too.
  public mutating func publish() {
    guard unpublished > 0, isResolved || isWithdrawn else { return }
    if isRemote || !outbox.isEmpty { sendElements() }
    if isPacked { publishPacked() } else { deviceArea.storeRelease16(used.littleEndian, at: 2) }
    if isRemote { sendIndex() }
    unpublished = 0
    recorder?.published(used: used, wrap: usedWrap)
    markDeviceAreaDirty()
  }

  /// Publishes, and returns whether the driver wants a notification for the entries used since the last call (§2.7.7,
  /// §2.8.10).
  public mutating func takeCall() -> Bool {
    publish()
    // Of a retired queue too: what was used before the chain that broke it is the driver's.
    guard usedSinceCall > 0 || owesCall else { return false }
    if owesCall {
      // The driver's event index says nothing about entries that a predecessor used.
      owesCall = false
      usedSinceCall = 0
      counts.calls &+= 1
      return true
    }
    RingMemory.fence()
    if isRemote, isResolved { refreshEvents() }
    // Where the driver's wish is cannot be read any more if the areas are gone; one call too many does no harm.
    let wanted = !isResolved || (isPacked ? isPackedCallWanted : isSplitCallWanted)
    usedSinceCall = 0
    if wanted { counts.calls &+= 1 }
    return wanted
  }

  // MARK: Areas

  mutating func unresolve() {
    isResolved = false
    isWithdrawn = false
    descriptorArea = RingMemory.none
    driverArea = RingMemory.none
    deviceArea = RingMemory.none
  }

  private mutating func resolveAreas() throws(DMAInterruption) {
    let counts = layout.byteCounts(packed: isPacked, eventIndex: hasEventIndex)
    // All three are asked for before giving up, so that the answers come together. Until all are here the old ones
    // stay.
    var interruption: DMAInterruption?
    var descriptors: RingMemory?
    var driver: RingMemory?
    var device: RingMemory?
    do throws(DMAInterruption) {
      // A packed ring's descriptors are written by the device too; every driver maps them for both.
      if isPacked { _ = try iotlb.ring(layout.descriptorArea, count: counts.descriptor, for: .read) }
      descriptors = try iotlb.ring(layout.descriptorArea, count: counts.descriptor, for: isPacked ? .write : .read)
    } catch { interruption = error }
    do throws(DMAInterruption) {
      driver = try iotlb.ring(layout.driverArea, count: counts.driver, for: .read)
    } catch { interruption = worse(error, interruption) }
    if readsUsedIndex {
      // Where it may not be read, `resume()` does without.
      do throws(DMAInterruption) {
        _ = try iotlb.ring(layout.deviceArea, count: 4, for: .read)
      } catch { if case .pending = error { interruption = worse(error, interruption) } }
    }
    do throws(DMAInterruption) {
      device = try iotlb.ring(layout.deviceArea, count: counts.device, for: .write)
    } catch { interruption = worse(error, interruption) }
    if let interruption { throw interruption }
    if let area = descriptors.take() { descriptorArea = area }
    if let area = driver.take() { driverArea = area }
    if let area = device.take() { deviceArea = area }
    isRemote = descriptorArea.isRemote || driverArea.isRemote || deviceArea.isRemote
    if !hasResumed { try resume() }
    isResolved = true
    isWithdrawn = false
    suppressed = false
  }

  /// Whether ``resume()`` wants the used index of the ring.
  private var readsUsedIndex: Bool { !hasResumed && !isPacked && (!isUsedKnown || recorder != nil) }

  private func worse(_ a: DMAInterruption, _ b: DMAInterruption?) -> DMAInterruption {
    if case .fault? = b { return b! }
    return a
  }

  /// Finds out where to go on, in the first round that reaches the ring.
  ///
  /// A front-end that restores a split queue passes the available index only: the used index is in the ring, if we may
  /// read there. A recorder knows better than either.
  private mutating func resume() throws(DMAInterruption) {
    var index: UInt16?
    if readsUsedIndex {
      do throws(DMAInterruption) {
        let area = try iotlb.ring(layout.deviceArea, count: 4, for: .read)
        index = UInt16(littleEndian: area.load16(at: 2))
      } catch {
        // Write-only for us (R054): nothing in flight is the only sensible guess, and it is what `used` holds.
        if case .pending = error { throw error }
      }
    }
    hasResumed = true
    if !isUsedKnown, let index, available &- index <= layout.size { used = index }
    isUsedKnown = true
    owesCall = state != .initial
    guard let recorder else { return }
    let next = recorder.resume(at: state, used: index) { slot in
      UInt16(littleEndian: descriptorArea.load16(at: Int(slot) &* 16 &+ 14))
    }
    available = next.state.available
    availableWrap = next.state.availableWrap
    used = next.state.used ?? used
    usedWrap = next.state.usedWrap
    seenAvailable = available
    owesCall = state != .initial
    again = leavesReplays ? [] : next.again.reversed()
  }

  @inline(never) private mutating func emitInOrder(_ entry: UsedEntry, _ sequence: UInt32) {
    order.insert(entry, at: sequence)
    while let entry = order.popFirst() { emit(entry) }
  }

  @inline(__always) private mutating func emit(_ entry: UsedEntry) {
    outstanding &-= Int(entry.slots)
    if isRetired { return }
    recorder?.completing(entry.record)
    guard isPacked else { return writeSplit(entry) }
    writePacked(entry)
    // The record of the next popped chain replaces this one's: this one must be published by then, or a successor after
    // a crash in between would know of neither.
    if recorder != nil { publish() }
  }

  func markDeviceAreaDirty() {
    guard let log = iotlb.dirtyLog else { return }
    deviceArea.markDirty(log, at: 0, count: deviceArea.byteCount)
    if isPacked { descriptorArea.markDirty(log, at: 0, count: descriptorArea.byteCount) }
  }
}
