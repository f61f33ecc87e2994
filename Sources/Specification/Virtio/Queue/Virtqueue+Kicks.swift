import DMA

// Whether the driver is to kick, and whether it need not because there is something already.
extension Virtqueue {
  /// Suppresses kicks for now.
  public mutating func disarmKick() {
    // It is a hint, which would cost a message where the area is a copy.
    guard isResolved, !isRetired, !suppressed, !isRemote else { return }
    if isPacked {
      deviceArea.store16(UInt16(1).littleEndian, at: 2)
    } else if !hasEventIndex {
      deviceArea.store16(UInt16(1).littleEndian, at: 0)
    } else {
      // What was named last is behind the driver, which kicks no more until another entry is.
      return
    }
    suppressed = true
    markDeviceAreaDirty()
  }

  /// Leaves what is available where it is, until a kick or something watched begins another round: for queues whose
  /// buffers wait for something to say, such as events.
  public mutating func rest() { isResting = true }

  /// Asks for kicks again. True when something is available already, or the round must be renewed: run another. False
  /// while pending: the translation's arrival kicks.
  public mutating func armKick() -> Bool { looksAgain(arming: true) }

  /// What ``armKick()`` says, without asking for kicks: for a worker that comes back without one.
  public mutating func hasMore() -> Bool { looksAgain(arming: false) }

  @inline(__always) private mutating func looksAgain(arming: Bool) -> Bool {
    guard !isRetired else { return false }
    if mustRenew { return true }
    guard isResolved, !isPending else { return false }
    if !again.isEmpty { return !held.isWaitedFor }
    if isClosing { return false }
    if arming {
      if isPacked { armPacked() } else { armSplit() }
      suppressed = false
      markDeviceAreaDirty()
      if isRemote { sendArming() }
    }
    if isResting || held.isWaitedFor { return false }
    if arming { RingMemory.fence() }
    if isRemote { return isRemotelyAvailable || mustRenew }
    return isPacked ? isPackedAvailable : driverArea.loadAcquire16(at: 2) != available.littleEndian
  }
}
