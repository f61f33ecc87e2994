import DMA

// The split format (§2.7). Descriptor table: 16 bytes each. Available ring: flags, idx, ring[size], used_event.
// Used ring: flags, idx, {id, len}[size], avail_event. Everything little-endian.
extension Virtqueue {
  mutating func nextSplit() throws(QueueError) -> DescriptorChain? {
    if !again.isEmpty { return try nextLeftSplit() }
    if seenAvailable == available {
      if isRemote, !refreshSplit() { return nil }
      let index = UInt16(littleEndian: driverArea.loadAcquire16(at: 2))
      if index == available { return nil }
      guard index &- available <= layout.size else { throw .availableIndex(index, expected: available) }
      seenAvailable = index
    }
    // An index beyond this cannot be right: the driver cannot have got a descriptor back for it (§2.7.13).
    guard outstanding < Int(layout.size) else { throw .tooManyAvailable(layout.size) }
    let slot = Int(available & (layout.size &- 1))
    let head = UInt16(littleEndian: driverArea.load16(at: 4 &+ 2 &* slot))
    guard head < layout.size else { throw .descriptorIndex(head) }
    guard let chain = try walkSplit(head, record: nil) else { return nil }
    available &+= 1
    return chain
  }

  /// A chain that a predecessor left.
  @inline(never) private mutating func nextLeftSplit() throws(QueueError) -> DescriptorChain? {
    guard let left = again.last else { return nil }
    guard left.id < layout.size else { throw .descriptorIndex(left.id) }
    guard let chain = try walkSplit(left.id, record: left.record) else { return nil }
    again.removeLast()
    return chain
  }

  /// Walks the chain from `head`. `record` is its in-flight record if it has one already.
  @inline(__always) private mutating func walkSplit(
    _ head: UInt16, record: UInt16?
  ) throws(QueueError) -> DescriptorChain? {
    var walk = beginWalk()
    var index = head
    while true {
      let words = descriptorArea.loadPair(at: Int(index) &* 16)
      let d = RingDescriptor(words.0, words.1)
      if d.flags & RingDescriptor.indirect != 0 {
        try walkIndirect(d, &walk)
        break
      }
      walk.count &+= 1
      try walk.add(d, &iotlb)
      guard d.flags & RingDescriptor.next != 0 else { break }
      guard d.id < layout.size else { throw .descriptorIndex(d.id) }
      // More descriptors than the table has: a loop (§2.7.5).
      guard walk.count < Int(layout.size) else { throw .chainTooLong }
      index = d.id
    }
    if mustWait(&walk) {
      pool.give(back: walk.list)
      return nil
    }
    return finish(walk, id: head, slots: 1, record: record ?? recorder?.popped(head: head) ?? head)
  }

  /// ``Virtqueue/prefetch()``.
  mutating func prefetchSplit(_ ahead: inout Prefetch) {
    let index = UInt16(littleEndian: driverArea.loadAcquire16(at: 2))
    guard index &- available <= layout.size else { return }
    // The chain at the head is asked for, unless it is one that a predecessor left.
    var at = again.isEmpty ? available &+ 1 : available
    while at != index, index &- at <= layout.size, ahead.mayGoOn {
      let head = UInt16(littleEndian: driverArea.load16(at: 4 &+ 2 &* Int(at & (layout.size &- 1))))
      guard head < layout.size else { return }
      var next = head
      while ahead.takeDescriptor() {
        let words = descriptorArea.loadPair(at: Int(next) &* 16)
        let d = RingDescriptor(words.0, words.1)
        prefetch(d, &ahead)
        guard d.flags & RingDescriptor.next != 0, d.flags & RingDescriptor.indirect == 0, d.id < layout.size else {
          break
        }
        next = d.id
      }
      ahead.chains -= 1
      at &+= 1
    }
  }

  @inline(__always) mutating func writeSplit(_ entry: UsedEntry) {
    let at = 4 &+ 8 &* Int(used & (layout.size &- 1))
    deviceArea.store32(UInt32(entry.id).littleEndian, at: at)
    deviceArea.store32(entry.written.littleEndian, at: at &+ 4)
    used &+= 1
    unpublished &+= 1
    usedSinceCall &+= 1
  }

  /// §2.7.7.2: with an event index, whether the entry it names is among those used since the last question.
  var isSplitCallWanted: Bool {
    guard hasEventIndex else { return UInt16(littleEndian: driverArea.load16(at: 0)) & 1 == 0 }
    let event = UInt16(littleEndian: driverArea.load16(at: 4 &+ 2 &* Int(layout.size)))
    return UInt32(used &- event &- 1) < usedSinceCall
  }

  mutating func armSplit() {
    if hasEventIndex {
      deviceArea.store16(available.littleEndian, at: 4 &+ 8 &* Int(layout.size))
    } else {
      deviceArea.store16(0, at: 0)
    }
  }
}
