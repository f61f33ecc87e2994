import DMA
import Virtio

// The split format (§2.7). With VIRTIO_F_IN_ORDER descriptors are taken in ring order (§2.7.5), otherwise from a free
// list.
extension DriverQueue {
  private static var next: UInt16 { 1 }
  private static var write: UInt16 { 2 }
  private static var indirect: UInt16 { 4 }

  private func after(_ index: UInt16) -> UInt16 {
    guard isInOrder else { return links[Int(index)] }
    return index == layout.size &- 1 ? 0 : index &+ 1
  }

  /// {address 64, length 32, flags 16, next 16}.
  private func put(_ area: borrowing RingMemory, at offset: Int, _ piece: DriverBuffer, flags: UInt16, next: UInt16) {
    area.store64(piece.address.rawValue.littleEndian, at: offset)
    let rest = UInt64(piece.count) | UInt64(flags) << 32 | UInt64(next) << 48
    area.store64(rest.littleEndian, at: offset &+ 8)
  }

  mutating func addSplit(_ readable: Span<DriverBuffer>, _ writable: Span<DriverBuffer>) {
    let head = firstFree
    var index = head
    var left = readable.count + writable.count
    for i in readable.indices {
      left -= 1
      let following = after(index)
      put(
        memory.descriptorArea, at: Int(index) &* 16, readable[i], flags: left > 0 ? Self.next : 0,
        next: left > 0 ? following : 0)
      index = following
    }
    for i in writable.indices {
      left -= 1
      let following = after(index)
      put(
        memory.descriptorArea, at: Int(index) &* 16, writable[i], flags: Self.write | (left > 0 ? Self.next : 0),
        next: left > 0 ? following : 0)
      index = following
    }
    firstFree = index
    offer(head)
  }

  mutating func addSplitIndirect(_ head: UInt16, _ readable: Span<DriverBuffer>, _ writable: Span<DriverBuffer>) {
    let base = Int(head) * memory.tableCapacity * 16
    let count = readable.count + writable.count
    var n = 0
    for i in readable.indices {
      let last = n + 1 == count
      put(
        memory.tables, at: base + 16 * n, readable[i], flags: last ? 0 : Self.next,
        next: last ? 0 : UInt16(truncatingIfNeeded: n + 1))
      n += 1
    }
    for i in writable.indices {
      let last = n + 1 == count
      put(
        memory.tables, at: base + 16 * n, writable[i], flags: Self.write | (last ? 0 : Self.next),
        next: last ? 0 : UInt16(truncatingIfNeeded: n + 1))
      n += 1
    }
    let table = DriverBuffer(
      DMAAddress(memory.tableAddress.rawValue &+ UInt64(base)), count: UInt32(truncatingIfNeeded: 16 * count))
    put(memory.descriptorArea, at: Int(head) &* 16, table, flags: Self.indirect, next: 0)
    firstFree = after(head)
    offer(head)
  }

  private mutating func offer(_ head: UInt16) {
    memory.driverArea.store16(head.littleEndian, at: 4 &+ 2 &* Int(available & (layout.size &- 1)))
    available &+= 1
  }

  mutating func publishSplit() -> Bool {
    let old = published
    guard available != old else { return false }
    memory.driverArea.storeRelease16(available.littleEndian, at: 2)
    published = available
    epoch &+= 1
    // The device stores its event index and then reads the ring's index; here it is the other way round. So one side
    // sees the other's store.
    RingMemory.fence()
    guard hasEventIndex else { return UInt16(littleEndian: memory.deviceArea.load16(at: 0)) & 1 == 0 }
    let event = UInt16(littleEndian: memory.deviceArea.load16(at: 4 &+ 8 &* Int(layout.size)))
    return available &- event &- 1 < available &- old
  }

  mutating func reapSplit() throws(DriverQueueError) -> UsedBuffer? {
    let index = UInt16(littleEndian: memory.deviceArea.loadAcquire16(at: 2))
    guard index != used else {
      // The end of a batch was announced further on than the index went.
      if batchEnd != nil { throw .usedIndex(index, expected: used &+ 1) }
      return nil
    }
    guard index &- used <= outstanding &- unpublishedSplit else { throw .usedIndex(index, expected: used) }
    let buffer: UsedBuffer
    if isInOrder {
      let end: UsedBuffer
      if let known = batchEnd { end = known } else { end = try usedEntry() }
      buffer = takeFromBatch(end)
    } else {
      buffer = try usedEntry()
    }
    used &+= 1
    release(buffer.id)
    return buffer
  }

  private var unpublishedSplit: UInt16 { available &- published }

  @inline(__always) private func usedEntry() throws(DriverQueueError) -> UsedBuffer {
    let at = 4 &+ 8 &* Int(used & (layout.size &- 1))
    let id = UInt32(littleEndian: memory.deviceArea.load32(at: at))
    return try checked(id: id, written: UInt32(littleEndian: memory.deviceArea.load32(at: at &+ 4)))
  }

  private mutating func release(_ head: UInt16) {
    let count = entries[Int(head)].descriptors
    entries[Int(head)] = Outstanding()
    free += count
    outstanding -= 1
    guard !isInOrder else { return }
    // Put the chain in front of the free list, by our own links.
    var last = head
    for _ in 1..<count { last = links[Int(last)] }
    links[Int(last)] = firstFree
    firstFree = head
  }

  mutating func armSplitCall(_ count: UInt16) -> Bool {
    if hasEventIndex {
      memory.driverArea.store16((used &+ count).littleEndian, at: 4 &+ 2 &* Int(layout.size))
    } else {
      memory.driverArea.store16(0, at: 0)
    }
    RingMemory.fence()
    return UInt16(littleEndian: memory.deviceArea.loadAcquire16(at: 2)) != used
  }
}
