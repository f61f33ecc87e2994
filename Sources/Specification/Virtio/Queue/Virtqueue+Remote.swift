import DMA

// Rings and buffers in memory that another process has (``RingMemory/isRemote``). The areas are copies: refreshed before
// each look, and what the device wrote is sent, in the order in which a driver may see it: a chain's bytes, the used
// elements, and then what makes them the driver's.

/// What is to be sent with the next ``Virtqueue/publish()``.
struct Outbox {
  /// So much is not kept longer than it must be.
  static let limit = 1 << 20
  private(set) var accesses: [RemoteAccess] = []
  private(set) var byteCount = 0
  /// Packed: slots from the next one on that are available, and whole in the copy.
  var seen = 0
  /// Packed: where elements were written since the last time.
  var elements: [Int] = []
  /// An access was refused: nothing of what the driver was to see can be relied on, and the queue ends.
  var fault: DMAFault?

  /// A number to look at, and no array: every queue asks.
  var isEmpty: Bool { byteCount == 0 }

  mutating func add(_ new: [RemoteAccess]) {
    for case .write(_, let bytes) in new { byteCount += bytes.count }
    accesses += new
  }

  mutating func take() -> [RemoteAccess] {
    defer { (accesses, byteCount) = ([], 0) }
    return accesses
  }
}

extension Virtqueue {
  /// The areas cannot be reached any more; the next round says so.
  private mutating func lose(_ fault: DMAFault) {
    if outbox.fault == nil { outbox.fault = fault }
    mustRenew = true
  }

  /// Whether there is no room for the copies of a chain until others have ended. It is walked anew then.
  mutating func lacksCopies(for walk: borrowing ChainWalk) -> Bool {
    guard walk.list.hasCopies, walk.fault?.reason == .exhausted, inFlight > 0 else { return false }
    iotlb.walkRepeats()
    iotlb.endWalk(repeats: true)
    held.wait()
    return true
  }

  /// Fetches what the device reads of a chain. Where that is refused, the chain keeps its status only.
  @inline(never) mutating func fetchCopies(_ walk: inout ChainWalk) {
    guard walk.fault == nil else { return }
    do throws(DMAInterruption) {
      try iotlb.fetch(walk.list)
    } catch {
      guard case .fault(let fault) = error else { return }
      walk.fail(fault)
      walk.keepStatusOnly(&iotlb)
    }
  }

  // MARK: Looks

  /// Makes the available index what it is now, then the available ring, then the descriptors: each is read after what
  /// says that it is there, as from memory. False if they cannot be reached.
  @inline(never) mutating func refreshSplit() -> Bool {
    let size = Int(layout.size)
    return refresh([
      (driverArea.remoteRead(at: 0, count: 4), { $0.driverArea.fill(at: 0, $1) }),
      (driverArea.remoteRead(at: 4, count: 2 * size), { $0.driverArea.fill(at: 4, $1) }),
      (descriptorArea.remoteRead(at: 0, count: 16 * size), { $0.descriptorArea.fill(at: 0, $1) }),
    ])
  }

  /// Makes the ring what it is now, twice: what the first look shows as available is whole in the second. False if it
  /// cannot be reached. While chains of the last look are left nothing is done.
  @inline(never) mutating func refreshPacked() -> Bool {
    guard outbox.seen <= 0 else { return true }
    // What was written and is not sent would be lost with the copy.
    publish()
    let read = descriptorArea.remoteRead(at: 0, count: descriptorArea.byteCount)
    return refresh([
      (
        read,
        {
          $0.descriptorArea.fill(at: 0, $1)
          $0.outbox.seen = $0.availableSlots
        }
      ),
      (read, { $0.descriptorArea.fill(at: 0, $1) }),
    ]) && outbox.seen > 0
  }

  /// Does reads, all under way together, and gives each its bytes.
  private mutating func refresh(
    _ parts: [(read: RemoteAccess?, fill: (inout Virtqueue, [UInt8]) -> Void)]
  ) -> Bool {
    guard let remote = iotlb.space.remote else { return true }
    do throws(DMAFault) {
      let here = parts.filter { $0.read != nil }
      let arrived = try remote.perform(here.compactMap(\.read))
      for (part, bytes) in zip(here, arrived) { part.fill(&self, bytes) }
      return true
    } catch {
      lose(error)
      return false
    }
  }

  /// Whether there is something for the device, by a message.
  var isRemotelyAvailable: Bool {
    if isPacked, outbox.seen > 0 { return true }
    do throws(DMAFault) {
      let place = isPacked ? Int(available) &* 16 &+ 14 : 2
      let area: DMAAddress = isPacked ? layout.descriptorArea : layout.driverArea
      guard let remote = iotlb.space.remote,
        let word = try remote.perform([.read(DMAAddress(area.rawValue &+ UInt64(place)), count: 2)]).first
      else { return false }
      let value = UInt16(word[0]) | UInt16(word[1]) << 8
      return isPacked ? isAvailable(value) : value != available
    } catch {
      // The next round meets the same refusal, and says so.
      return true
    }
  }

  /// Makes what the driver says of calls what it is now.
  @inline(never) mutating func refreshEvents() {
    do throws(DMAFault) {
      if isPacked {
        try driverArea.refresh()
      } else if hasEventIndex {
        try driverArea.refresh(at: 4 &+ 2 &* Int(layout.size), count: 2)
      } else {
        try driverArea.refresh(at: 0, count: 2)
      }
    } catch { lose(error) }
  }

  // MARK: Changes

  /// The used elements that are not the driver's yet, as they have to be sent before they are.
  var remoteElements: [RemoteAccess] {
    if isPacked {
      // Of the first one all but its flags, which come last.
      return outbox.elements.compactMap { at in
        descriptorArea.remoteWrite(at: at &+ 8, count: at &+ 14 == firstUsed.at ? 6 : 8)
      }
    }
    let size = layout.size
    return (0..<unpublished).compactMap { i in
      let slot = (used &- unpublished &+ i) & (size &- 1)
      return deviceArea.remoteWrite(at: 4 &+ 8 &* Int(slot), count: 8)
    }
  }

  /// Sends chains' bytes and the used elements. The process that does the accesses goes on after one that it refuses, so
  /// all have arrived before ``sendIndex()`` makes them the driver's.
  @inline(never) mutating func sendElements() {
    send(outbox.take() + (isRemote ? remoteElements : []))
    outbox.elements.removeAll(keepingCapacity: true)
  }

  /// Sends what makes the elements the driver's, which the copy has already.
  @inline(never) mutating func sendIndex() {
    let last =
      isPacked ? descriptorArea.remoteWrite(at: firstUsed.at, count: 2) : deviceArea.remoteWrite(at: 2, count: 2)
    if let last { send([last]) }
  }

  /// Sends what says when to kick.
  @inline(never) mutating func sendArming() {
    let change =
      isPacked
      ? deviceArea.remoteWrite(at: 0, count: 4)
      : hasEventIndex
        ? deviceArea.remoteWrite(at: 4 &+ 8 &* Int(layout.size), count: 2) : deviceArea.remoteWrite(at: 0, count: 2)
    if let change { send([change]) }
  }

  private mutating func send(_ accesses: [RemoteAccess]) {
    guard !accesses.isEmpty, outbox.fault == nil, let remote = iotlb.space.remote else { return }
    do throws(DMAFault) { _ = try remote.perform(accesses) } catch { lose(error) }
  }
}
