import DMA
import Virtio

// The packed format (§2.8): slots are filled in ring order, and a buffer is known by an ID.
extension DriverQueue {
  private static var next: UInt16 { 1 }
  private static var write: UInt16 { 2 }
  private static var indirect: UInt16 { 4 }
  private static var availableBit: UInt16 { 1 << 7 }
  private static var usedBit: UInt16 { 1 << 15 }

  /// {address 64, length 32, id 16} of the slot to be filled next; then its flags, unless the device waits for them:
  /// those of the first slot since the last publication are kept back, and with them everything behind it.
  private mutating func put(_ piece: DriverBuffer, id: UInt16, flags: UInt16) {
    let at = Int(available) &* 16
    memory.descriptorArea.store64(piece.address.rawValue.littleEndian, at: at)
    memory.descriptorArea.store32(piece.count.littleEndian, at: at &+ 8)
    memory.descriptorArea.store16(id.littleEndian, at: at &+ 12)
    let flags = flags | (availableWrap ? Self.availableBit : Self.usedBit)
    if unpublished == 0 {
      firstSlot = available
      firstFlags = flags
    } else {
      memory.descriptorArea.store16(flags.littleEndian, at: at &+ 14)
    }
    unpublished += 1
    available &+= 1
    if available == layout.size {
      available = 0
      availableWrap.toggle()
    }
  }

  mutating func addPacked(_ id: UInt16, _ readable: Span<DriverBuffer>, _ writable: Span<DriverBuffer>) {
    var left = readable.count + writable.count
    for i in readable.indices {
      left -= 1
      put(readable[i], id: id, flags: left > 0 ? Self.next : 0)
    }
    for i in writable.indices {
      left -= 1
      put(writable[i], id: id, flags: Self.write | (left > 0 ? Self.next : 0))
    }
  }

  mutating func addPackedIndirect(_ id: UInt16, _ readable: Span<DriverBuffer>, _ writable: Span<DriverBuffer>) {
    let base = Int(id) * memory.tableCapacity * 16
    var n = 0
    for i in readable.indices {
      entry(base + 16 * n, readable[i], flags: 0)
      n += 1
    }
    for i in writable.indices {
      entry(base + 16 * n, writable[i], flags: Self.write)
      n += 1
    }
    let table = DriverBuffer(
      DMAAddress(memory.tableAddress.rawValue &+ UInt64(base)), count: UInt32(truncatingIfNeeded: 16 * n))
    put(table, id: id, flags: Self.indirect)
  }

  /// In a table no flag but the write flag is valid, and no ID (§2.8.7).
  private func entry(_ at: Int, _ piece: DriverBuffer, flags: UInt16) {
    memory.tables.store64(piece.address.rawValue.littleEndian, at: at)
    memory.tables.store64((UInt64(piece.count) | UInt64(flags) << 48).littleEndian, at: at &+ 8)
  }

  mutating func publishPacked() -> Bool {
    let count = unpublished
    guard count > 0 else { return false }
    memory.descriptorArea.storeRelease16(firstFlags.littleEndian, at: Int(firstSlot) &* 16 &+ 14)
    unpublished = 0
    epoch &+= 1
    RingMemory.fence()
    // One load: offset and flags belong together.
    let word = UInt32(littleEndian: memory.deviceArea.load32(at: 0))
    switch UInt16(truncatingIfNeeded: word >> 16) & 3 {
    case 1: return false
    case 2 where hasEventIndex:
      let event = UInt16(truncatingIfNeeded: word & 0x7fff)
      guard event < layout.size else { return true }
      // Slots from the event to the last one filled, looking back; the wrap counter says which lap the event is in.
      let back =
        UInt32(available) &- UInt32(event) &- 1 &+ ((word >> 15 & 1 == 1) != availableWrap ? UInt32(layout.size) : 0)
      return back < UInt32(count)
    default: return true
    }
  }

  private func isUsed(at slot: UInt16, wrap: Bool) -> Bool {
    let flags = UInt16(littleEndian: memory.descriptorArea.loadAcquire16(at: Int(slot) &* 16 &+ 14))
    return (flags & Self.availableBit != 0) == wrap && (flags & Self.usedBit != 0) == wrap
  }

  mutating func reapPacked() throws(DriverQueueError) -> UsedBuffer? {
    let buffer: UsedBuffer
    if let end = batchEnd {
      buffer = takeFromBatch(end)
    } else {
      guard outstanding > 0, isUsed(at: used, wrap: usedWrap) else { return nil }
      let at = Int(used) &* 16
      let id = UInt16(littleEndian: memory.descriptorArea.load16(at: at &+ 12))
      let flags = UInt16(littleEndian: memory.descriptorArea.load16(at: at &+ 14))
      // Without the write flag the length means nothing (§2.8.4).
      let written = flags & Self.write != 0 ? UInt32(littleEndian: memory.descriptorArea.load32(at: at &+ 8)) : 0
      let end = try checked(id: UInt32(id), written: written)
      buffer = isInOrder ? takeFromBatch(end) : end
    }
    let count = entries[Int(buffer.id)].descriptors
    used &+= count
    if used >= layout.size {
      used &-= layout.size
      usedWrap.toggle()
    }
    entries[Int(buffer.id)] = Outstanding()
    free += count
    outstanding -= 1
    links[Int(buffer.id)] = firstFree
    firstFree = buffer.id
    return buffer
  }

  mutating func armPackedCall(_ count: UInt16) -> Bool {
    if hasEventIndex {
      // A buffer takes a slot or more, so this is at most `count` buffers away.
      var slot = used &+ count
      var wrap = usedWrap
      if slot >= layout.size {
        slot &-= layout.size
        wrap.toggle()
      }
      memory.driverArea.store16((slot | (wrap ? 0x8000 : 0)).littleEndian, at: 0)
      memory.driverArea.storeRelease16(UInt16(2).littleEndian, at: 2)
    } else {
      memory.driverArea.store16(0, at: 2)
    }
    RingMemory.fence()
    return isUsed(at: used, wrap: usedWrap)
  }
}
