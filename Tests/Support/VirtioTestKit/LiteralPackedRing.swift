public import DMA
public import Virtio

/// The packed format, §2.8: a ring of {le64 addr, le32 len, le16 id, le16 flags}, and for each side an event
/// suppression structure of {le16 offset:15 wrap:1, le16 flags:2}.
public final class LiteralPackedRing: LiteralRing {
  public let memory: LiteralMemory
  public let layout: QueueLayout
  public let hasEventIndex: Bool
  /// The slot to be filled next, and the driver's ring wrap counter.
  public private(set) var nextSlot = 0
  public private(set) var driverWrap = true
  /// The slot the device uses next, and its ring wrap counter as we follow it.
  public private(set) var usedSlot = 0
  public private(set) var deviceWrap = true
  /// Those from `firstFreeID` on are free; the list is tidied now and then.
  private var freeIDs: [UInt16]
  private var firstFreeID = 0
  private var slotsOf: [UInt16: Int] = [:]
  public private(set) var free: Int
  /// Flags of heads that are not yet written: slot → flags.
  private var held: [(slot: Int, flags: UInt16)] = []
  private var firstShown = 0
  private var firstWrap = true

  /// `slot` and `wrap` are where both sides stand, in a ring that was used before.
  public init(
    _ layout: QueueLayout, eventIndex: Bool = false, startingAt slot: Int = 0, wrap: Bool = true,
    in memory: LiteralMemory
  ) {
    self.layout = layout
    self.memory = memory
    hasEventIndex = eventIndex
    free = Int(layout.size)
    freeIDs = (0..<layout.size).map { $0 }
    memory.write([UInt8](repeating: 0, count: 16 * Int(layout.size)), at: layout.descriptorArea)
    memory.write([UInt8](repeating: 0, count: 4), at: layout.driverArea)
    memory.write([UInt8](repeating: 0, count: 4), at: layout.deviceArea)
    nextSlot = slot
    usedSlot = slot
    firstShown = slot
    driverWrap = wrap
    deviceWrap = wrap
    firstWrap = wrap
    // Slots of earlier laps look used: both bits as the wrap counter was when they were passed.
    for i in 0..<Int(layout.size) {
      let passed = i < slot ? wrap : !wrap
      memory.write(le16: passed ? 0x8080 : 0, at: layout.descriptorArea + 16 * i + 14)
    }
  }

  // MARK: The structures, field by field

  public func setDescriptor(at place: DMAAddress, address: DMAAddress, length: UInt32, id: UInt16, flags: UInt16) {
    memory.write(le64: address.rawValue, at: place)
    memory.write(le32: length, at: place + 8)
    memory.write(le16: id, at: place + 12)
    memory.publish(le16: flags, at: place + 14)
  }

  /// As above, of an indirect table, at any alignment.
  public func setDescriptorBytes(at place: DMAAddress, address: DMAAddress, length: UInt32, flags: UInt16) {
    memory.write(le64: address.rawValue, at: place)
    memory.write(le32: length, at: place + 8)
    memory.write(le32: UInt32(flags) << 16, at: place + 12)
  }

  /// Writes the next slot, flags and all, adding the bits that make it available. Returns the slot.
  @discardableResult public func put(address: DMAAddress, length: UInt32, id: UInt16, flags: UInt16) -> Int {
    let slot = nextSlot
    setDescriptor(
      at: layout.descriptorArea + 16 * slot, address: address, length: length, id: id,
      flags: flags | (driverWrap ? 0x0080 : 0x8000))
    advance()
    return slot
  }

  private func advance() {
    nextSlot += 1
    if nextSlot == Int(layout.size) {
      nextSlot = 0
      driverWrap.toggle()
    }
  }

  public func flags(of slot: Int) -> UInt16 { memory.observe16(at: layout.descriptorArea + 16 * slot + 14) }
  /// {offset, wrap counter, flags} of the device's wishes.
  public var deviceEvent: (offset: UInt16, wrap: Bool, flags: UInt16) {
    let word = memory.observe16(at: layout.deviceArea)
    return (word & 0x7fff, word & 0x8000 != 0, memory.observe16(at: layout.deviceArea + 2))
  }
  public func setDriverEvent(offset: UInt16, wrap: Bool, flags: UInt16) {
    memory.publish(le16: offset | (wrap ? 0x8000 : 0), at: layout.driverArea)
    memory.publish(le16: flags, at: layout.driverArea + 2)
  }

  // MARK: LiteralRing

  public func post(_ chain: [LiteralDescriptor], table: DMAAddress?) -> UInt16 {
    let slots = table == nil ? chain.count : 1
    precondition(!chain.isEmpty && slots <= free)
    let id = freeIDs[firstFreeID]
    firstFreeID += 1
    if firstFreeID > 2 * Int(layout.size) {
      freeIDs.removeFirst(firstFreeID)
      firstFreeID = 0
    }
    slotsOf[id] = slots
    free -= slots
    if let table {
      for (i, d) in chain.enumerated() {
        setDescriptor(at: table + 16 * i, address: d.address, length: d.length, id: 0, flags: d.isWritable ? 2 : 0)
      }
      write(address: table, length: UInt32(16 * chain.count), id: id, flags: 4, isHead: true)
      return id
    }
    for (i, d) in chain.enumerated() {
      let last = i + 1 == chain.count
      // The ID counts in the last descriptor only; elsewhere it is noise.
      write(
        address: d.address, length: d.length, id: last ? id : ~id, flags: (last ? 0 : 1) | (d.isWritable ? 2 : 0),
        isHead: i == 0)
    }
    return id
  }

  private func write(address: DMAAddress, length: UInt32, id: UInt16, flags: UInt16, isHead: Bool) {
    let place = layout.descriptorArea + 16 * nextSlot
    memory.write(le64: address.rawValue, at: place)
    memory.write(le32: length, at: place + 8)
    memory.write(le16: id, at: place + 12)
    let flags = flags | (driverWrap ? 0x0080 : 0x8000)
    if isHead { held.append((nextSlot, flags)) } else { memory.write(le16: flags, at: place + 14) }
    advance()
  }

  @discardableResult public func publish() -> Bool {
    // Last head first, so that a device never sees a chain before those behind it are whole; any order is legal.
    for head in held.reversed() { memory.publish(le16: head.flags, at: layout.descriptorArea + 16 * head.slot + 14) }
    let isNew = !held.isEmpty
    held.removeAll()
    var slot = firstShown
    var wrap = firstWrap
    firstShown = nextSlot
    firstWrap = driverWrap
    guard isNew else { return false }
    let event = deviceEvent
    guard hasEventIndex, event.flags & 3 == 2 else { return event.flags & 3 != 1 }
    // §2.8.10: wanted when the slot that the event names, in the lap it names, is one of those just made available.
    repeat {
      if slot == Int(event.offset), wrap == event.wrap { return true }
      slot += 1
      if slot == Int(layout.size) {
        slot = 0
        wrap.toggle()
      }
    } while slot != nextSlot || wrap != driverWrap
    return false
  }

  public func takeUsed() -> [LiteralUsed] {
    var result: [LiteralUsed] = []
    while true {
      let flags = flags(of: usedSlot)
      guard (flags & 0x0080 != 0) == deviceWrap, (flags & 0x8000 != 0) == deviceWrap else { return result }
      let place = layout.descriptorArea + 16 * usedSlot
      let id = memory.le16(at: place + 12)
      let used = LiteralUsed(id: UInt32(id), length: flags & 2 != 0 ? memory.le32(at: place + 8) : 0)
      result.append(used)
      guard let slots = slotsOf.removeValue(forKey: id) else { return result }
      freeIDs.append(id)
      free += slots
      for _ in 0..<slots {
        usedSlot += 1
        if usedSlot == Int(layout.size) {
          usedSlot = 0
          deviceWrap.toggle()
        }
      }
    }
  }

  public func refuseCalls() { setDriverEvent(offset: 0, wrap: false, flags: 1) }
  public func wantCalls() { setDriverEvent(offset: 0, wrap: false, flags: 0) }
  public func wantCall(after distance: UInt16) {
    var slot = usedSlot + Int(distance)
    var wrap = deviceWrap
    if slot >= Int(layout.size) {
      slot -= Int(layout.size)
      wrap.toggle()
    }
    setDriverEvent(offset: UInt16(slot), wrap: wrap, flags: 2)
  }
}
