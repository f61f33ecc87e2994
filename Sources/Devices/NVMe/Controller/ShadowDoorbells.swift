import DMA

/// Doorbells in the driver's memory (Doorbell Buffer Config, NVM Express base specification 2.0, 5.8): the driver writes
/// them there, and rings the register only when it passes the value that the controller left in the other buffer.
///
/// They are those of I/O queues: drivers ring the admin queue's register, and some never write its shadow.
struct ShadowDoorbells: ~Copyable {
  private(set) var addresses = (DMAAddress(0), DMAAddress(0))
  private(set) var isOn = false
  /// Bytes of each of the two.
  private(set) var byteCount = 0
  private var doorbells = RingMemory.none
  private var eventIndices = RingMemory.none
  private var isReached = false

  /// The driver has written its doorbells to memory from now on.
  mutating func use(_ doorbells: DMAAddress, _ eventIndices: DMAAddress, byteCount: Int) {
    addresses = (doorbells, eventIndices)
    self.byteCount = byteCount
    isOn = true
    isReached = false
  }

  mutating func reach(_ doorbells: consuming RingMemory, _ eventIndices: consuming RingMemory) {
    self.doorbells = doorbells
    self.eventIndices = eventIndices
    isReached = true
  }

  mutating func forget() { isReached = false }

  mutating func clear() { self = ShadowDoorbells() }

  /// What the driver wrote last, any value; nil: the register counts.
  func tail(of queue: Int) -> Int? { isUsed(queue) ? value(8 * queue) : nil }
  func head(of queue: Int) -> Int? { isUsed(queue) ? value(8 * queue + 4) : nil }

  /// Whether they are in memory that another process has, where each look would be a message.
  var isRemote: Bool { doorbells.isRemote || eventIndices.isRemote }

  func isUsed(_ queue: Int) -> Bool { isOn && queue > 0 && isReached }

  private func value(_ offset: Int) -> Int { Int(UInt32(littleEndian: doorbells.loadAcquire32(at: offset))) }

  /// The driver is to ring the register when it passes this tail, or head.
  func report(tail: Int, of queue: Int) { report(tail, 8 * queue) }
  func report(head: Int, of queue: Int) { report(head, 8 * queue + 4) }

  private func report(_ value: Int, _ offset: Int) { eventIndices.store32(UInt32(value).littleEndian, at: offset) }
}

extension ControllerWorker {
  /// Arms the registers: a driver that does anything from now on rings them. Returns whether it did something just
  /// before, of which no register tells.
  mutating func prepareToSleep() -> Bool {
    guard shadow.isOn else { return false }
    var isNew = false
    for i in 1..<submissions.count where submissions[i].isOpen && shadow.isUsed(i) {
      guard submissions[i].reported != submissions[i].head else { continue }
      submissions[i].reported = submissions[i].head
      shadow.report(tail: submissions[i].head, of: i)
      isNew = true
    }
    for i in 1..<completions.count where completions[i].isOpen && shadow.isUsed(i) {
      // What the driver takes matters where room is short, and to the pin.
      guard completions[i].isOccupied, completions[i].reported != completions[i].head else { continue }
      guard !completions[i].hasRoom || !interrupts.hasMessages else { continue }
      completions[i].reported = completions[i].head
      shadow.report(head: completions[i].head, of: i)
      isNew = true
    }
    // Each has been reported already: the driver rings.
    guard isNew else { return false }
    RingMemory.fence()
    for i in 1..<submissions.count where submissions[i].isOpen && shadow.isUsed(i) {
      if let tail = shadow.tail(of: i), tail != submissions[i].head, tail < submissions[i].size,
        submissions[i].deletion == nil
      {
        // With a full completion queue, or too much in flight, what comes next wakes the thread anyway.
        if completions[submissions[i].completion].hasRoom, canHold { return true }
      }
    }
    for i in 1..<completions.count where completions[i].isOpen && shadow.isUsed(i) {
      if let head = shadow.head(of: i), head != completions[i].head, lookAtHead(i) { return true }
    }
    return false
  }

  /// Doorbell Buffer Config.
  mutating func configureDoorbells(_ command: borrowing NVMeCommand) throws(Refusal) {
    let mask = UInt64(pageSize - 1)
    guard command.dataPointerType == 0, command.pointer1 & mask == 0, command.pointer2 & mask == 0 else {
      throw Refusal(.invalidField)
    }
    shadow.use(DMAAddress(command.pointer1), DMAAddress(command.pointer2), byteCount: pageSize)
    guard reachShadow() else {
      shadow.clear()
      throw Refusal(.dataTransferError)
    }
    guard !shadow.isRemote else {
      // A driver goes on with the registers.
      shadow.clear()
      throw Refusal(.invalidField)
    }
    for i in 0..<submissions.count { submissions[i].reported = nil }
    for i in 0..<completions.count { completions[i].reported = nil }
  }
}
