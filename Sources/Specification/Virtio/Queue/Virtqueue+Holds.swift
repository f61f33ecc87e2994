internal import DMA

// What a round holds, and when it releases it. A drain waits for rounds under way, so a round ends where its thread may
// wait.
extension Virtqueue {
  /// Releases the round's hold on mappings while the thread does something that may take long, such as I/O for a chain.
  /// Chains in flight keep theirs. Until ``takeHold()`` nothing of the queue may be touched.
  public mutating func letGo() {
    publish()
    iotlb.endRound()
  }

  /// Ends ``letGo()``: the round goes on, with what it remembers of mappings that are still there.
  public mutating func takeHold() {
    guard iotlb.beginRound() else { return }
    withdrawAreas()
    mustRenew = true
  }

  /// For a drain that waits: everything it has not taken away stays as it was.
  mutating func renewHold() {
    letGo()
    takeHold()
  }

  /// The ring's areas have been taken away, or may have been.
  mutating func withdrawAreas() {
    guard isResolved else { return }
    // Chains in flight hold the mappings of these areas, and the drain waits for them.
    if inFlight > 0 {
      isResolved = false
      isWithdrawn = true
    } else {
      unresolve()
    }
  }
}
