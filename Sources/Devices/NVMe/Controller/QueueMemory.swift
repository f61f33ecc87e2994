import DMA

/// What of the driver's memory the controller uses all the time: its queues, and its shadow doorbells.
extension ControllerWorker {
  /// Lets mappings go while storage is at work. Until ``takeHold()`` no memory but that of the commands' data may be
  /// touched.
  mutating func letGo() {
    if !outbox.entries.isEmpty { deliverEntries() }
    iotlb.endRound()
  }

  /// Ends ``letGo()``. Queues are looked up again if mappings were taken away.
  mutating func takeHold() {
    guard iotlb.beginRound() else { return }
    for i in 0..<submissions.count { submissions[i].isReached = false }
    for i in 0..<completions.count { completions[i].isReached = false }
    shadow.forget()
    // They are looked at before anything else, and by the way.
    if shadow.isOn, !reachShadow() { fail() }
  }

  mutating func reach(submission i: Int) -> Bool {
    if submissions[i].isReached { return true }
    let (address, count) = (submissions[i].address, submissions[i].size * NVMeCommand.byteCount)
    do throws(DMAInterruption) { submissions[i].reach(try iotlb.ring(address, count: count, for: .read)) } catch {
      return refused(error)
    }
    return true
  }

  mutating func reach(completion i: Int) -> Bool {
    if completions[i].isReached { return true }
    let (address, count) = (completions[i].address, completions[i].size * CompletionQueue.entryBytes)
    do throws(DMAInterruption) { completions[i].reach(try iotlb.ring(address, count: count, for: .write)) } catch {
      return refused(error)
    }
    return true
  }

  /// Whether both pages of the shadow doorbells can be reached.
  mutating func reachShadow() -> Bool {
    let (doorbells, eventIndices) = shadow.addresses
    do throws(DMAInterruption) {
      let first = try iotlb.ring(doorbells, count: shadow.byteCount, for: .read)
      shadow.reach(first, try iotlb.ring(eventIndices, count: shadow.byteCount, for: .write))
    } catch {
      return refused(error)
    }
    return true
  }

  private func refused(_ error: DMAInterruption) -> Bool {
    if case .fault(let fault) = error { iotlb.space.report(fault) }
    return false
  }

  // MARK: Memory that another process has

  /// Makes the next commands of a queue be there, `count` of which the driver has written. False if they cannot be
  /// reached: the controller has failed then.
  mutating func refresh(_ queue: Int, _ count: Int) -> Bool {
    do throws(DMAFault) {
      try submissions[queue].refresh(min(count, Self.burst))
      return true
    } catch {
      iotlb.space.report(error)
      fail()
      return false
    }
  }

  /// Sends the first `filled` bytes of what a command yields, before it is answered. False if they cannot be: the
  /// command has failed then. Costs nothing where the memory is mapped here.
  mutating func deliver(_ memory: borrowing ChainMemory, filled: Int) -> Bool {
    guard memory.hasCopies, filled > 0, let remote = iotlb.space.remote else { return true }
    do throws(DMAFault) {
      _ = try remote.perform(memory.remoteWrites(first: filled, andLast: false))
      return true
    } catch {
      iotlb.space.report(error)
      return false
    }
  }

  /// Sends entries, and when all have arrived their phases, which show them. The process that does the accesses goes on
  /// after one that it refuses.
  mutating func deliverEntries() {
    let (entries, phases) = outbox
    outbox = ([], [])
    guard let remote = iotlb.space.remote else { return }
    do throws(DMAFault) {
      _ = try remote.perform(entries)
      _ = try remote.perform(phases)
    } catch {
      iotlb.space.report(error)
      fail()
    }
  }
}
