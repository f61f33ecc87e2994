import DMA

/// The state of resolving one chain: shared by both ring formats and by indirect tables.
struct ChainWalk: ~Copyable {
  var list: SegmentList
  /// Descriptors so far, indirect ones and those that point to tables included.
  var count = 0
  private(set) var total: UInt64 = 0
  private(set) var isWritable = false
  private(set) var isPending = false
  private(set) var fault: DMAFault?
  /// A fault was found, or no more can be asked for in this walk: the rest is only checked against the rules of the
  /// ring.
  private var isDecided = false
  /// There is more to say of the chain than where its memory is: something is missing, or was, or cannot be reached.
  private(set) var isOdd = false
  private var lastWritable: (address: UInt64, length: UInt32) = (0, 0)

  /// Whether a table could not be read yet, so that some descriptors are not known.
  private(set) var isIncomplete = false

  @inline(__always) init(_ list: consuming SegmentList) {
    self.list = list
  }

  /// An earlier walk asked for something, of this chain as a rule. If it found a fault, nothing but the status is
  /// resolved now.
  mutating func resume(decided: DMAFault?) {
    isOdd = true
    fault = decided
    isDecided = decided != nil
  }

  /// Takes one descriptor's memory. A missing translation or a fault is remembered, and the walk goes on: the rules of
  /// the ring are checked to the end, and every page that has to be asked for is asked for at once.
  @inline(__always) mutating func add(_ d: RingDescriptor, _ iotlb: inout IOTLB) throws(QueueError) {
    if d.flags & RingDescriptor.write != 0 {
      if !isWritable {
        isWritable = true
        list.beginWritable()
      }
    } else if isWritable {
      throw .readableAfterWritable
    }
    total &+= UInt64(d.length)
    guard total <= 1 << 32 else { throw .chainTooLarge }
    // A descriptor of no bytes touches nothing, at any address (R055).
    guard d.length > 0 else { return }
    iotlb.named(d.address, count: UInt64(d.length))
    if isWritable { lastWritable = (d.address.rawValue, d.length) }
    guard !isDecided else { return }
    if iotlb.resolveAtOnce(d.address, count: Int(d.length), for: isWritable ? .write : .read, into: &list) { return }
    try addPieces(d, &iotlb)
  }

  /// ``add(_:_:)`` of memory that is not known to be in one place.
  @inline(never) private mutating func addPieces(_ d: RingDescriptor, _ iotlb: inout IOTLB) throws(QueueError) {
    let access: DMAAccess = isWritable ? .write : .read
    do throws(DMAInterruption) {
      try iotlb.gather(d.address, count: Int(d.length), for: access, into: &list)
      if list.hasCopies { isOdd = true }
    } catch {
      isOdd = true
      switch error {
      case .pending:
        isPending = true
        // A refused page decides the chain, even if the first one is answered later: a refusal is reported once.
        fault = iotlb.askAhead(d.address, count: UInt64(d.length), for: access)
        isDecided = fault != nil || !iotlb.mayAsk
      case .fault(let fault): fail(fault)
      }
    }
    guard !list.isFull else { throw .chainTooLong }
  }

  mutating func fail(_ fault: DMAFault) {
    isOdd = true
    if self.fault == nil { self.fault = fault }
    isDecided = true
  }
  mutating func waitForTable() {
    isOdd = true
    isPending = true
    isIncomplete = true
  }

  /// After a fault the chain keeps only its last device-writable byte, if that can be reached.
  mutating func keepStatusOnly(_ iotlb: inout IOTLB) {
    isPending = false
    list.clear()
    list.beginWritable()
    guard lastWritable.length > 0 else { return }
    let (last, overflow) = lastWritable.address.addingReportingOverflow(UInt64(lastWritable.length - 1))
    guard !overflow else { return }
    do throws(DMAInterruption) {
      try iotlb.resolve(DMAAddress(last), count: 1, for: .write, into: &list)
    } catch {
      if error == .pending { isPending = true }
    }
  }
}

extension Virtqueue {
  /// Walks an indirect table: its own rules, then its descriptors (§2.7.5.3, §2.8.7).
  mutating func walkIndirect(_ d: RingDescriptor, _ walk: inout ChainWalk) throws(QueueError) {
    guard hasIndirect, d.flags & RingDescriptor.next == 0, d.length > 0, d.length % 16 == 0, d.length <= 16 * 32768
    else {
      throw .indirectTable
    }
    walk.count += 1
    let count = Int(d.length) / 16
    iotlb.named(d.address, count: UInt64(d.length))
    let isWhole: Bool
    do throws(DMAInterruption) {
      isWhole = try loadTable(d)
    } catch {
      switch error {
      case .pending:
        let fault = iotlb.askAhead(d.address, count: UInt64(d.length), for: .read)
        if let fault { walk.fail(fault) } else { walk.waitForTable() }
      case .fault(let fault): walk.fail(fault)
      }
      return
    }
    guard isWhole else { throw .indirectTable }
    if isPacked {
      for i in 0..<count {
        var e = packedDescriptor(scratch.word(i, 0), scratch.word(i, 1))
        // No other flag is valid here; they are to be ignored (§2.8.7).
        e.flags &= RingDescriptor.write
        walk.count += 1
        try walk.add(e, &iotlb)
      }
      return
    }
    var i = 0
    var seen = 0
    while true {
      seen += 1
      // A chain cannot visit more entries than the table has without going in a circle.
      guard seen <= count else { throw .chainTooLong }
      let e = RingDescriptor(scratch.word(i, 0).littleEndian, scratch.word(i, 1).littleEndian)
      guard e.flags & RingDescriptor.indirect == 0 else { throw .indirectTable }
      walk.count += 1
      try walk.add(e, &iotlb)
      guard e.flags & RingDescriptor.next != 0 else { return }
      guard Int(e.id) < count else { throw .descriptorIndex(e.id) }
      i = Int(e.id)
    }
  }

  /// Copies the table that a descriptor points to into `scratch`. False when it is not all there.
  @inline(__always) mutating func loadTable(_ d: RingDescriptor) throws(DMAInterruption) -> Bool {
    // Always a read: the write flag of the descriptor that points here is ignored (R048).
    var table = pool.take()
    do throws(DMAInterruption) {
      try iotlb.resolve(d.address, count: Int(d.length), for: .read, into: &table)
    } catch {
      pool.give(back: table)
      throw error
    }
    let isWhole = scratch.load(Int(d.length) / 16, from: table.readable)
    pool.give(back: table)
    return isWhole
  }

  /// Begins a walk of the chain at the head.
  @inline(__always) mutating func beginWalk() -> ChainWalk {
    var walk = ChainWalk(pool.take())
    // Only a walk that asked for something decides anything, and has asked until its chain is taken.
    if iotlb.hasAsked { walk.resume(decided: decided) }
    return walk
  }

  /// Ends a walk that did not have to wait.
  @inline(__always) mutating func finish(
    _ walk: consuming ChainWalk, id: UInt16, slots: UInt16, record: UInt16
  ) -> DescriptorChain {
    let sequence = popped
    popped &+= 1
    outstanding &+= Int(slots)
    round.add(descriptors: walk.count, bytes: walk.total)
    counts.requests &+= 1
    let fault = walk.fault
    return DescriptorChain(
      id: id, slots: slots, sequence: sequence, record: record, memory: walk.list.seal(iotlb, fault: fault))
  }

  /// Whether the walk has to be done again later; then its storage goes back. Otherwise the chain is taken.
  @inline(__always) mutating func mustWait(_ walk: inout ChainWalk) -> Bool {
    walk.isOdd || held.isHeavy(walk.list.room) ? isHeldUp(&walk) : false
  }

  @inline(never) private mutating func isHeldUp(_ walk: inout ChainWalk) -> Bool {
    if lacksCopies(for: walk) || waits(&walk) || lacksRoom(for: walk) { return true }
    if walk.list.hasCopies { fetchCopies(&walk) }
    decided = nil
    if let fault = walk.fault {
      iotlb.space.report(fault)
      counts.faults &+= 1
    }
    iotlb.endWalk(repeats: false)
    takeHeavy(walk)
    return false
  }

  /// A fault is remembered until the chain is walked again: the next walk must not ask for the refused page again, or a
  /// chain with two such pages would be walked for ever, each refusal used up while the other page is asked for.
  private mutating func waits(_ walk: inout ChainWalk) -> Bool {
    if walk.fault != nil, !walk.isIncomplete { walk.keepStatusOnly(&iotlb) }
    guard walk.isPending else { return false }
    iotlb.walkRepeats()
    prefetch()
    let missing = iotlb.firstMissing
    let mayHelp = iotlb.endWalk(repeats: true)
    decided = walk.fault ?? (mayHelp ? nil : missing)
    isPending = true
    counts.waits &+= 1
    return true
  }
}
