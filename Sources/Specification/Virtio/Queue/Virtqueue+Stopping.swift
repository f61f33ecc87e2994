internal import DMA

// How a queue comes to its end: closed, drained, or broken; and what it leaves to a successor.
extension Virtqueue {
  /// Takes nothing from the ring any more. Chains that a predecessor left in the in-flight record are still yielded, or
  /// with `leavingReplays` stay there. The queue can be given up when it ``isDrained``.
  public mutating func close(leavingReplays: Bool) {
    isClosing = true
    guard leavingReplays else { return }
    leavesReplays = true
    again = []
  }

  /// Whether ``next()`` will never yield anything again.
  public var takesNothing: Bool { isClosing && again.isEmpty }

  /// Whether nothing is in flight, nor known or suspected to be waiting in the in-flight record.
  public var isDrained: Bool {
    // A handler may have dropped chains, which will never be given back.
    guard inFlight == 0 || !iotlb.hasChains else { return false }
    if isRetired || leavesReplays { return true }
    // A ring that was never reached may wait for translations that do not come any more: QEMU answers none while it
    // stops a device.
    return again.isEmpty && (hasResumed || recorder?.mayHoldChains != true)
  }

  /// Whether chains in flight are written down where a successor finds them, so that they may be left to it.
  public var canLeave: Bool { recorder != nil }

  /// Leaves a chain without I/O under way to the successor that takes the queue over and does it from the start. Only
  /// for a queue that stops, and that ``canLeave``.
  public mutating func leave(_ chain: consuming DescriptorChain) {
    precondition(recorder != nil)
    // What was called off may have written a part.
    if let log = iotlb.dirtyLog { chain.memory.markDirty(log) }
    give(chain)
    completed &+= 1
    if isWithdrawn, inFlight == 0 { unresolve() }
    pool.give(back: chain.memory)
  }

  /// Ends the queue's work for good at `chain`, the one that ``next()`` yielded last, which was not acted on and cannot
  /// be given back: there is no way to tell the driver how it ended.
  ///
  /// A queue that is started again without the reset that the device needs meets the same chain again (R099).
  public mutating func retire(at chain: consuming DescriptorChain) {
    isRetired = true
    give(chain)
    // A recorder shows what is in flight to a successor by itself.
    guard recorder == nil, chain.sequence &+ 1 == popped else {
      completed &+= 1
      return
    }
    popped &-= 1
    outstanding &-= Int(chain.slots)
    if isPacked, available < chain.slots {
      available &+= layout.size
      availableWrap.toggle()
    }
    available &-= chain.slots
  }
}
