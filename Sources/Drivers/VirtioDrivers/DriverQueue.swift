public import DMA
public import Virtio

/// A piece of a buffer as the device is to see it.
@frozen public struct DriverBuffer: Hashable, Sendable {
  public var address: DMAAddress
  /// Bytes.
  public var count: UInt32

  @inlinable public init(_ address: DMAAddress, count: UInt32) {
    self.address = address
    self.count = count
  }
}

/// A buffer that the device is done with.
@frozen public struct UsedBuffer: Hashable, Sendable {
  /// What ``DriverQueue/add(readable:writable:indirect:)`` returned for it.
  public var id: UInt16
  /// How many bytes the device wrote, from the start of the device-writable part on.
  public var written: UInt32

  @usableFromInline init(id: UInt16, written: UInt32) {
    self.id = id
    self.written = written
  }
}

/// What went wrong on the driver's side of a queue.
public enum DriverQueueError: Error, Hashable, Sendable {
  /// A size or alignment that the ring format forbids.
  case layout(QueueError)
  /// An area of memory is shorter than the layout needs.
  case area(bytes: Int, needed: Int)
  /// A buffer without pieces.
  case empty
  /// More pieces than the queue, or an indirect table, can ever hold.
  case tooLong(Int)
  /// More than 2^32 bytes in one buffer (§2.7.5).
  case tooLarge(UInt64)
  /// Not enough free descriptors now: reap first.
  case full(free: Int)
  /// Indirect descriptors are not negotiated, or there is no memory for tables.
  case noIndirect
  /// The device: a used index beyond what was made available.
  case usedIndex(UInt16, expected: UInt16)
  /// The device: an ID of no buffer that it has.
  case usedID(UInt32)
  /// The device: more bytes written than the buffer has room for.
  case usedLength(UInt32, room: UInt64)
  /// The device broke a rule earlier; reset it.
  case broken
}

/// The memory of a driver's queue as this process sees it: the three areas, and room for indirect tables if there is
/// any.
public struct DriverQueueMemory: ~Copyable {
  var descriptorArea: RingMemory
  var driverArea: RingMemory
  var deviceArea: RingMemory
  var tables: RingMemory
  let tableAddress: DMAAddress
  let tableCapacity: Int

  /// Areas without indirect tables.
  public init(descriptorArea: consuming RingMemory, driverArea: consuming RingMemory, deviceArea: consuming RingMemory)
  {
    self.descriptorArea = descriptorArea
    self.driverArea = driverArea
    self.deviceArea = deviceArea
    tables = RingMemory.none
    tableAddress = DMAAddress(0)
    tableCapacity = 0
  }

  /// - Parameters:
  ///   - tables: one indirect table per descriptor of the queue, each with room for `tableCapacity` descriptors of 16
  ///     bytes.
  ///   - tableAddress: where the device finds them.
  public init(
    descriptorArea: consuming RingMemory, driverArea: consuming RingMemory, deviceArea: consuming RingMemory,
    tables: consuming RingMemory, tableAddress: DMAAddress, tableCapacity: Int
  ) {
    self.descriptorArea = descriptorArea
    self.driverArea = driverArea
    self.deviceArea = deviceArea
    self.tables = tables
    self.tableAddress = tableAddress
    self.tableCapacity = tableCapacity
  }

  /// Areas in guest memory: nil when one of them is not all in one region.
  public init?(
    _ memory: GuestMemory, size: UInt16, features: Features, descriptorArea: GuestAddress, driverArea: GuestAddress,
    deviceArea: GuestAddress
  ) {
    let none = DMAAddress(0)
    let bytes = QueueLayout(size: size, descriptorArea: none, driverArea: none, deviceArea: none)
      .byteCounts(packed: features.contains(.ringPacked), eventIndex: features.contains(.eventIndex))
    guard let descriptors = memory.cells(at: descriptorArea, byteCount: bytes.descriptor),
      let driver = memory.cells(at: driverArea, byteCount: bytes.driver),
      let device = memory.cells(at: deviceArea, byteCount: bytes.device)
    else { return nil }
    self.init(descriptorArea: descriptors, driverArea: driver, deviceArea: device)
  }

  /// Areas and indirect tables in guest memory: nil when one of them is not all in one region.
  public init?(
    _ memory: GuestMemory, size: UInt16, features: Features, descriptorArea: GuestAddress, driverArea: GuestAddress,
    deviceArea: GuestAddress, tables: GuestAddress, tableAddress: DMAAddress, tableCapacity: Int
  ) {
    let none = DMAAddress(0)
    let bytes = QueueLayout(size: size, descriptorArea: none, driverArea: none, deviceArea: none)
      .byteCounts(packed: features.contains(.ringPacked), eventIndex: features.contains(.eventIndex))
    guard let descriptors = memory.cells(at: descriptorArea, byteCount: bytes.descriptor),
      let driver = memory.cells(at: driverArea, byteCount: bytes.driver),
      let device = memory.cells(at: deviceArea, byteCount: bytes.device),
      let room = memory.cells(at: tables, byteCount: Int(size) * tableCapacity * 16)
    else { return nil }
    self.init(
      descriptorArea: descriptors, driverArea: driver, deviceArea: device, tables: room, tableAddress: tableAddress,
      tableCapacity: tableCapacity)
  }
}

/// The driver side of a virtqueue, split or packed (§2.7, §2.8).
///
/// It keeps its own copy of everything it has to remember: what the device writes is checked against that copy, so
/// wrong values of a device are an error here and nothing worse. A request costs no allocation. One thread uses it.
public struct DriverQueue: ~Copyable {
  public let layout: QueueLayout
  public let isPacked: Bool
  public let isInOrder: Bool
  let hasEventIndex: Bool
  let hasIndirect: Bool
  var memory: DriverQueueMemory

  /// Descriptors (packed: slots) that no buffer occupies.
  public internal(set) var free: UInt16
  /// Buffers the device has.
  public internal(set) var outstanding: UInt16 = 0
  /// The device broke a rule: nothing is taken or given any more.
  public internal(set) var isBroken = false

  struct Outstanding {
    /// Descriptors in the ring; 0 when the device does not have the buffer.
    var descriptors: UInt16 = 0
    /// Bytes of the device-writable part.
    var room: UInt64 = 0
    /// The publication that made it available is still to come while this equals ``epoch``.
    var epoch: UInt64 = 0
  }
  /// Publications so far.
  var epoch: UInt64 = 0
  /// By ID. Split: the head's index.
  var entries: FixedArray<Outstanding>
  /// Split: each descriptor's successor, in a chain or in the free list. Packed: each free ID's successor.
  var links: FixedArray<UInt16>
  /// Split: the first free descriptor. Packed: the first free ID.
  var firstFree: UInt16 = 0
  /// VIRTIO_F_IN_ORDER: the IDs the device has, oldest first.
  var order: FixedArray<UInt16>
  var orderStart: UInt16 = 0

  /// Split: the available index. Packed: the slot to be filled next.
  var available: UInt16 = 0
  var availableWrap = true
  /// Split: the available index the device sees.
  var published: UInt16 = 0
  /// Packed: slots filled and not yet published, and the first one's flags: they alone are still missing.
  var unpublished: UInt16 = 0
  var firstSlot: UInt16 = 0
  var firstFlags: UInt16 = 0
  /// Split: the used index to be read next. Packed: the slot.
  var used: UInt16 = 0
  var usedWrap = true
  /// VIRTIO_F_IN_ORDER: the last buffer of a batch that is being taken, and what was written to it.
  var batchEnd: UsedBuffer?

  /// Clears the areas and starts an empty queue on them.
  public init(layout: QueueLayout, features: Features, memory: consuming DriverQueueMemory) throws(DriverQueueError) {
    let isPacked = features.contains(.ringPacked)
    if let fault = layout.fault(packed: isPacked) { throw .layout(fault) }
    let hasEventIndex = features.contains(.eventIndex)
    let hasIndirect = features.contains(.indirectDescriptors) && memory.tableCapacity > 0
    let size = Int(layout.size)
    let bytes = layout.byteCounts(packed: isPacked, eventIndex: hasEventIndex)
    try Self.check(memory.descriptorArea.byteCount, bytes.descriptor)
    try Self.check(memory.driverArea.byteCount, bytes.driver)
    try Self.check(memory.deviceArea.byteCount, bytes.device)
    if hasIndirect { try Self.check(memory.tables.byteCount, size * memory.tableCapacity * 16) }
    self.layout = layout
    self.isPacked = isPacked
    self.hasEventIndex = hasEventIndex
    self.hasIndirect = hasIndirect
    isInOrder = features.contains(.inOrder)
    free = layout.size
    entries = FixedArray(count: size) { _ in Outstanding() }
    links = FixedArray(count: size) { UInt16(truncatingIfNeeded: $0 + 1) }
    order = FixedArray(count: isInOrder ? size : 1) { _ in 0 }
    for at in stride(from: 0, to: bytes.descriptor, by: 8) { memory.descriptorArea.store64(0, at: at) }
    for at in stride(from: 0, to: bytes.driver, by: 2) { memory.driverArea.store16(0, at: at) }
    for at in stride(from: 0, to: bytes.device, by: 2) { memory.deviceArea.store16(0, at: at) }
    self.memory = memory
  }

  /// Goes on in other memory that holds a copy of the areas, and of the tables, as they are: the addresses that the
  /// device sees stay, and lead there now.
  public mutating func move(to memory: consuming DriverQueueMemory) throws(DriverQueueError) {
    let bytes = layout.byteCounts(packed: isPacked, eventIndex: hasEventIndex)
    try Self.check(memory.descriptorArea.byteCount, bytes.descriptor)
    try Self.check(memory.driverArea.byteCount, bytes.driver)
    try Self.check(memory.deviceArea.byteCount, bytes.device)
    if hasIndirect { try Self.check(memory.tables.byteCount, self.memory.tables.byteCount) }
    self.memory = memory
  }

  private static func check(_ bytes: Int, _ needed: Int) throws(DriverQueueError) {
    guard bytes >= needed else { throw .area(bytes: bytes, needed: needed) }
  }

  /// Gives the device a buffer: what it may read first, then what it may write. It sees the buffer after ``publish()``.
  ///
  /// - Parameter indirect: put the pieces into an indirect table, so that they take one descriptor of the ring.
  /// - Returns: the buffer's ID, below the queue's size and unique among the buffers the device has.
  public mutating func add(
    readable: Span<DriverBuffer>, writable: Span<DriverBuffer>, indirect: Bool = false
  ) throws(DriverQueueError) -> UInt16 {
    guard !isBroken else { throw .broken }
    let pieces = readable.count + writable.count
    guard pieces > 0 else { throw .empty }
    // A chain may never be longer than the queue, indirect or not (§2.7.5.3.1).
    guard pieces <= Int(layout.size), !indirect || pieces <= memory.tableCapacity || !hasIndirect else {
      throw .tooLong(pieces)
    }
    if indirect, !hasIndirect { throw .noIndirect }
    var total: UInt64 = 0
    for i in readable.indices { total += UInt64(readable[i].count) }
    var room: UInt64 = 0
    for i in writable.indices { room += UInt64(writable[i].count) }
    total += room
    guard total <= 1 << 32 else { throw .tooLarge(total) }
    let descriptors = indirect ? 1 : UInt16(truncatingIfNeeded: pieces)
    guard descriptors <= free else { throw .full(free: Int(free)) }

    let id: UInt16
    if isPacked {
      id = firstFree
      firstFree = links[Int(id)]
      if indirect { addPackedIndirect(id, readable, writable) } else { addPacked(id, readable, writable) }
    } else {
      id = firstFree
      if indirect { addSplitIndirect(id, readable, writable) } else { addSplit(readable, writable) }
    }
    free -= descriptors
    entries[Int(id)] = Outstanding(descriptors: descriptors, room: room, epoch: epoch)
    if isInOrder { order[orderSlot(outstanding)] = id }
    outstanding += 1
    return id
  }

  /// Makes added buffers available. True: notify the device (§2.7.10, §2.8.10).
  public mutating func publish() -> Bool { isPacked ? publishPacked() : publishSplit() }

  /// The next buffer the device is done with, or nil. After an error the queue is broken and yields nothing more.
  public mutating func reap() throws(DriverQueueError) -> UsedBuffer? {
    guard !isBroken else { return nil }
    do throws(DriverQueueError) {
      return isPacked ? try reapPacked() : try reapSplit()
    } catch {
      isBroken = true
      throw error
    }
  }

  /// Suppresses calls for now. Only a hint: one may come all the same.
  public mutating func disarmCall() {
    if isPacked {
      memory.driverArea.store16(UInt16(1).littleEndian, at: 2)
    } else if hasEventIndex {
      // As far away as the index allows: no flag may be used along with it (§2.7.7.1).
      memory.driverArea.store16((used &- 1).littleEndian, at: 4 &+ 2 &* Int(layout.size))
    } else {
      memory.driverArea.store16(UInt16(1).littleEndian, at: 0)
    }
  }

  /// Asks for a call when a buffer is used, or, where the event index is negotiated, about `count` more than that:
  /// never more than the device has, so that the call does come. True when something is used already: reap first.
  public mutating func armCall(after count: UInt16 = 0) -> Bool {
    let count = min(count, outstanding > 0 ? outstanding &- 1 : 0)
    return isPacked ? armPackedCall(count) : armSplitCall(count)
  }

  /// What goes into the upper half of a notification with VIRTIO_F_NOTIFICATION_DATA (§2.9).
  public var notificationData: UInt16 { isPacked ? available | (availableWrap ? 0x8000 : 0) : available }

  // MARK: Shared by both formats

  /// The position in `order` of the buffer `n` after the oldest.
  func orderSlot(_ n: UInt16) -> Int {
    let at = Int(orderStart) + Int(n)
    return at < Int(layout.size) ? at : at - Int(layout.size)
  }

  /// The oldest buffer of a batch that ends with `batchEnd`: one the device did not write an entry for was used
  /// completely (§2.7.9, §2.8.9).
  mutating func takeFromBatch(_ end: UsedBuffer) -> UsedBuffer {
    let id = order[orderSlot(0)]
    orderStart = UInt16(truncatingIfNeeded: orderSlot(1))
    if id == end.id {
      batchEnd = nil
      return end
    }
    batchEnd = end
    return UsedBuffer(id: id, written: UInt32(clamping: entries[Int(id)].room))
  }

  /// Checks what the device said of a buffer.
  @inline(__always) func checked(id: UInt32, written: UInt32) throws(DriverQueueError) -> UsedBuffer {
    guard id < UInt32(layout.size), entries[Int(id)].descriptors > 0, entries[Int(id)].epoch != epoch else {
      throw .usedID(id)
    }
    let room = entries[Int(id)].room
    guard UInt64(written) <= room else { throw .usedLength(written, room: room) }
    return UsedBuffer(id: UInt16(truncatingIfNeeded: id), written: written)
  }
}
