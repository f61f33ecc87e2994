public import DMA
public import Virtio

/// The split format, §2.7: a table of {le64 addr, le32 len, le16 flags, le16 next}; an available ring of {le16 flags,
/// le16 idx, le16 ring[], le16 used_event}; a used ring of {le16 flags, le16 idx, {le32 id, le32 len} ring[], le16
/// avail_event}.
public final class LiteralSplitRing: LiteralRing {
  public let memory: LiteralMemory
  public let layout: QueueLayout
  public let hasEventIndex: Bool
  public let isInOrder: Bool
  /// The available index, published or not.
  public private(set) var availableIndex: UInt16
  private var shown: UInt16
  /// The used index up to which used entries were taken.
  public private(set) var usedIndex: UInt16
  /// Those from `firstFree` on are free; the list is tidied now and then.
  private var freeDescriptors: [UInt16]
  private var firstFree = 0
  private var chains: [UInt16: [UInt16]] = [:]

  /// `index` is where both indices stand, in a ring that was used before.
  public init(
    _ layout: QueueLayout, eventIndex: Bool = false, inOrder: Bool = false, startingAt index: UInt16 = 0,
    in memory: LiteralMemory
  ) {
    self.layout = layout
    self.memory = memory
    hasEventIndex = eventIndex
    isInOrder = inOrder
    availableIndex = index
    shown = index
    usedIndex = index
    freeDescriptors = (0..<layout.size).map { $0 }
    memory.write([UInt8](repeating: 0, count: 16 * Int(layout.size)), at: layout.descriptorArea)
    memory.write([UInt8](repeating: 0, count: 6 + 2 * Int(layout.size)), at: layout.driverArea)
    memory.write([UInt8](repeating: 0, count: 6 + 8 * Int(layout.size)), at: layout.deviceArea)
    memory.write(le16: index, at: layout.driverArea + 2)
    memory.write(le16: index, at: layout.deviceArea + 2)
  }

  public var free: Int { freeDescriptors.count - firstFree }

  private func takeFree(_ count: Int) -> [UInt16] {
    let taken = Array(freeDescriptors[firstFree..<firstFree + count])
    firstFree += count
    if firstFree > 2 * Int(layout.size) {
      freeDescriptors.removeFirst(firstFree)
      firstFree = 0
    }
    return taken
  }

  // MARK: The tables, field by field

  public func setDescriptor(_ index: Int, address: DMAAddress, length: UInt32, flags: UInt16, next: UInt16) {
    setDescriptor(at: layout.descriptorArea + 16 * index, address: address, length: length, flags: flags, next: next)
  }

  /// Into the descriptor table or an indirect one.
  public func setDescriptor(at place: DMAAddress, address: DMAAddress, length: UInt32, flags: UInt16, next: UInt16) {
    memory.write(le64: address.rawValue, at: place)
    memory.write(le32: length, at: place + 8)
    memory.write(le16: flags, at: place + 12)
    memory.write(le16: next, at: place + 14)
  }

  /// Puts a head into the available ring; ``publish()`` shows it.
  public func offer(_ head: UInt16) {
    memory.write(le16: head, at: layout.driverArea + 4 + 2 * Int(availableIndex % layout.size))
    availableIndex &+= 1
  }

  public func setAvailableIndex(_ index: UInt16) {
    availableIndex = index
    shown = index
    memory.publish(le16: index, at: layout.driverArea + 2)
  }

  public var usedFlags: UInt16 { memory.observe16(at: layout.deviceArea) }
  public var deviceUsedIndex: UInt16 { memory.observe16(at: layout.deviceArea + 2) }
  public var availableEvent: UInt16 { memory.observe16(at: layout.deviceArea + 4 + 8 * Int(layout.size)) }
  public func setAvailableFlags(_ flags: UInt16) { memory.publish(le16: flags, at: layout.driverArea) }
  public func setUsedEvent(_ index: UInt16) {
    memory.publish(le16: index, at: layout.driverArea + 4 + 2 * Int(layout.size))
  }

  // MARK: LiteralRing

  public func post(_ chain: [LiteralDescriptor], table: DMAAddress?) -> UInt16 {
    precondition(!chain.isEmpty && (table == nil ? chain.count : 1) <= free)
    if let table {
      let head = takeFree(1)[0]
      for (i, d) in chain.enumerated() {
        let more = i + 1 < chain.count
        setDescriptor(
          at: table + 16 * i, address: d.address, length: d.length, flags: (more ? 1 : 0) | (d.isWritable ? 2 : 0),
          next: more ? UInt16(i + 1) : 0)
      }
      setDescriptor(Int(head), address: table, length: UInt32(16 * chain.count), flags: 4, next: 0)
      chains[head] = [head]
      offer(head)
      return head
    }
    let indices = takeFree(chain.count)
    for (i, d) in chain.enumerated() {
      let more = i + 1 < chain.count
      setDescriptor(
        Int(indices[i]), address: d.address, length: d.length, flags: (more ? 1 : 0) | (d.isWritable ? 2 : 0),
        next: more ? indices[i + 1] : 0)
    }
    chains[indices[0]] = indices
    offer(indices[0])
    return indices[0]
  }

  @discardableResult public func publish() -> Bool {
    let old = shown
    shown = availableIndex
    memory.publish(le16: availableIndex, at: layout.driverArea + 2)
    guard old != availableIndex else { return false }
    guard hasEventIndex else { return usedFlags & 1 == 0 }
    // §2.7.10.1: wanted when the entry that the event names is one of those just written.
    let event = availableEvent
    var index = old
    while index != availableIndex {
      if index == event { return true }
      index &+= 1
    }
    return false
  }

  public func takeUsed() -> [LiteralUsed] {
    var result: [LiteralUsed] = []
    let end = deviceUsedIndex
    while usedIndex != end {
      let place = layout.deviceArea + 4 + 8 * Int(usedIndex % layout.size)
      let used = LiteralUsed(id: memory.le32(at: place), length: memory.le32(at: place + 4))
      usedIndex &+= 1
      if let id = UInt16(exactly: used.id), let indices = chains.removeValue(forKey: id) {
        // In ring order, descriptors come back in the order they were taken.
        freeDescriptors.append(contentsOf: indices)
      }
      result.append(used)
    }
    return result
  }

  public func refuseCalls() {
    if hasEventIndex { setUsedEvent(usedIndex &- 1) } else { setAvailableFlags(1) }
  }
  public func wantCalls() {
    if hasEventIndex { setUsedEvent(usedIndex) } else { setAvailableFlags(0) }
  }
  public func wantCall(after distance: UInt16) { setUsedEvent(usedIndex &+ distance) }
}
