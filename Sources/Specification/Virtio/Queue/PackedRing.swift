import DMA

// The packed format (§2.8). One ring of {address, length, id, flags}, written by both sides; bits 7 and 15 of flags
// say, with the wrap counters, whose turn it is. Driver and device event areas: {offset and wrap, flags}.
extension Virtqueue {
  private static var availableBit: UInt16 { 1 << 7 }
  private static var usedBit: UInt16 { 1 << 15 }

  @inline(__always) func packedDescriptor(_ word0: UInt64, _ word1: UInt64) -> RingDescriptor {
    RingDescriptor(
      address: DMAAddress(word0), length: UInt32(truncatingIfNeeded: word1),
      id: UInt16(truncatingIfNeeded: word1 &>> 32),
      flags: UInt16(truncatingIfNeeded: word1 &>> 48))
  }

  /// The slot's descriptor, its flags read first.
  @inline(__always) private func descriptor(at slot: UInt16) -> RingDescriptor {
    let words = descriptorArea.loadPairBackwards(at: Int(slot) &* 16)
    return packedDescriptor(UInt64(littleEndian: words.0), UInt64(littleEndian: words.1))
  }

  @inline(__always) func isAvailable(_ flags: UInt16) -> Bool { Self.isAvailable(flags, in: availableWrap) }

  /// Whether flags make a slot the device's in a lap (§2.8.1).
  @inline(__always) private static func isAvailable(_ flags: UInt16, in wrap: Bool) -> Bool {
    (flags & availableBit != 0) == wrap && (flags & usedBit != 0) != wrap
  }

  /// Slots from the next one on that the driver made available, one after the other.
  var availableSlots: Int {
    var (slot, wrap, count) = (available, availableWrap, 0)
    while count < Int(layout.size) {
      let flags = UInt16(littleEndian: descriptorArea.load16(at: Int(slot) &* 16 &+ 14))
      guard Self.isAvailable(flags, in: wrap) else { break }
      count += 1
      slot &+= 1
      if slot == layout.size {
        slot = 0
        wrap.toggle()
      }
    }
    return count
  }

  var isPackedAvailable: Bool {
    isAvailable(UInt16(littleEndian: descriptorArea.loadAcquire16(at: Int(available) &* 16 &+ 14)))
  }

  /// ``Virtqueue/prefetch()``.
  mutating func prefetchPacked(_ ahead: inout Prefetch) {
    var slot = available
    var wrap = availableWrap
    var left = Int(layout.size) - outstanding
    // The chain at the head is asked for, unless it is one that a predecessor left.
    var isHead = again.isEmpty
    while left > 0, ahead.mayGoOn {
      var d = descriptor(at: slot)
      guard Self.isAvailable(d.flags, in: wrap) else { return }
      while ahead.takeDescriptor() {
        if !isHead { prefetch(d, &ahead) }
        left -= 1
        slot &+= 1
        if slot == layout.size {
          slot = 0
          wrap.toggle()
        }
        guard d.flags & RingDescriptor.next != 0, d.flags & RingDescriptor.indirect == 0, left > 0 else { break }
        d = descriptor(at: slot)
      }
      if !isHead { ahead.chains -= 1 }
      isHead = false
    }
  }

  mutating func nextPacked() throws(QueueError) -> DescriptorChain? {
    if !again.isEmpty { return try nextLeftPacked() }
    if isRemote, !refreshPacked() { return nil }
    let d = descriptor(at: available)
    guard isAvailable(d.flags) else { return nil }
    // This slot is with the device, and not the driver's to make available (§2.8.13).
    guard outstanding < Int(layout.size) else { throw .tooManyAvailable(layout.size) }
    return try walkPacked(d)
  }

  /// Walks the chain that begins with `head`, in the slot to be read next.
  @inline(__always) private mutating func walkPacked(_ head: RingDescriptor) throws(QueueError) -> DescriptorChain? {
    var d = head
    var walk = beginWalk()
    var slot = available
    var wrap = availableWrap
    var slots: UInt16 = 0
    while true {
      slots &+= 1
      slot &+= 1
      if slot == layout.size {
        slot = 0
        wrap.toggle()
      }
      if recorder != nil { log(d, isFirst: slots == 1) }
      if d.flags & RingDescriptor.indirect != 0 {
        try walkIndirect(d, &walk)
        break
      }
      walk.count &+= 1
      try walk.add(d, &iotlb)
      guard d.flags & RingDescriptor.next != 0 else { break }
      // More slots than the ring has: a loop. Or more than the driver can have had.
      guard outstanding &+ Int(slots) < Int(layout.size) else {
        throw slots < layout.size ? .tooManyAvailable(layout.size) : .chainTooLong
      }
      d = descriptor(at: slot)
    }
    if mustWait(&walk) {
      pool.give(back: walk.list)
      return nil
    }
    let place = recorder == nil ? d.id : try record(d.id)
    if isRemote { outbox.seen -= Int(slots) }
    available = slot
    availableWrap = wrap
    return finish(walk, id: d.id, slots: slots, record: place)
  }

  /// For ``record(_:)``. Room for the longest chain yet is kept: it is no longer than the ring.
  @inline(never) private mutating func log(_ d: RingDescriptor, isFirst: Bool) {
    if isFirst { logged.removeAll(keepingCapacity: true) }
    logged.append(d)
  }

  /// Writes the chain down that was just walked.
  @inline(never) private mutating func record(_ id: UInt16) throws(QueueError) -> UInt16 {
    guard let record = recorder?.popped(id: id, descriptors: logged) else { throw .bufferID(id) }
    return record
  }

  /// A chain that a predecessor left.
  @inline(never) private mutating func nextLeftPacked() throws(QueueError) -> DescriptorChain? {
    guard let left = again.last, let chain = try walkLogged(left) else { return nil }
    again.removeLast()
    return chain
  }

  /// A chain of a predecessor, from its log: the ring may have been overwritten since.
  private mutating func walkLogged(_ chain: InflightChain) throws(QueueError) -> DescriptorChain? {
    guard !chain.descriptors.isEmpty, chain.descriptors.count <= Int(layout.size) else { throw .bufferID(chain.id) }
    var walk = beginWalk()
    for d in chain.descriptors {
      if d.flags & RingDescriptor.indirect != 0 {
        try walkIndirect(d, &walk)
        break
      }
      walk.count &+= 1
      try walk.add(d, &iotlb)
    }
    if mustWait(&walk) {
      pool.give(back: walk.list)
      return nil
    }
    return finish(walk, id: chain.id, slots: UInt16(chain.descriptors.count), record: chain.record)
  }

  @inline(__always) mutating func writePacked(_ entry: UsedEntry) {
    let at = Int(used) &* 16
    if isRemote { outbox.elements.append(at) }
    writeUsed(entry, at)
    used &+= entry.slots
    if used >= layout.size {
      used &-= layout.size
      usedWrap.toggle()
    }
    unpublished &+= 1
    usedSinceCall &+= UInt32(entry.slots)
  }

  /// Length and ID first; the flags make the element the driver's (§2.8.6).
  @inline(__always) private mutating func writeUsed(_ entry: UsedEntry, _ at: Int) {
    descriptorArea.store32(entry.written.littleEndian, at: at &+ 8)
    descriptorArea.store16(entry.id.littleEndian, at: at &+ 12)
    var flags = entry.written > 0 ? RingDescriptor.write : 0
    if usedWrap { flags |= Self.availableBit | Self.usedBit }
    // The driver stops at the first element that is not used: with that one written last, a batch is seen whole or not
    // at all, also by a successor after a crash.
    if unpublished == 0 {
      firstUsed = (at &+ 14, flags)
    } else {
      descriptorArea.storeRelease16(flags.littleEndian, at: at &+ 14)
    }
  }

  /// Makes the elements written since the last time the driver's.
  mutating func publishPacked() {
    descriptorArea.storeRelease16(firstUsed.flags.littleEndian, at: firstUsed.at)
  }

  /// §2.8.10: flags 0 always, 1 never, 2 when the descriptor at the given offset and wrap is among those used.
  var isPackedCallWanted: Bool {
    let word = UInt32(littleEndian: driverArea.load32(at: 0))
    switch UInt16(truncatingIfNeeded: word >> 16) & 3 {
    case 1: return false
    case 2 where hasEventIndex:
      var event = UInt16(truncatingIfNeeded: word & 0x7fff)
      guard event < layout.size else { return true }
      if (word >> 15 & 1 == 1) != usedWrap { event &-= layout.size }
      return UInt32(used &- event &- 1) < usedSinceCall
    default: return true
    }
  }

  mutating func armPacked() {
    guard hasEventIndex else {
      deviceArea.store16(0, at: 2)
      return
    }
    deviceArea.store16((available | (availableWrap ? 0x8000 : 0)).littleEndian, at: 0)
    deviceArea.storeRelease16(UInt16(2).littleEndian, at: 2)
  }
}
