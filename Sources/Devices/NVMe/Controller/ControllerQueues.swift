import DMA

/// Where a command came from, and what is told of it if it fails.
struct CommandRecord {
  /// Its submission queue.
  var queue: Int
  var identifier: UInt16
  var opcode: UInt8
  var namespace: UInt32
  /// SLBA, of an I/O command that has one.
  var block: UInt64

  init(_ command: borrowing NVMeCommand, queue: Int) {
    self.queue = queue
    identifier = command.identifier
    opcode = command.opcode
    namespace = command.namespace
    block = queue == 0 ? 0 : command.startingBlock
  }
}

/// A submission queue as the controller keeps it.
struct SubmissionQueue: ~Copyable {
  let address: DMAAddress
  /// Entries.
  let size: Int
  /// The completion queue of its commands.
  let completion: Int
  /// The next entry to take.
  var head = 0
  /// Commands that were taken, and not answered.
  var inFlight = 0
  /// The command that deletes it once nothing is in flight. Nothing more is taken.
  var deletion: CommandRecord?
  /// What the driver was told last of the tail it need not report (EventIdx); nil: nothing.
  var reported: Int?
  /// Its memory, if it was found in this generation of mappings.
  private(set) var memory = RingMemory.none
  var isReached = false

  init(_ address: DMAAddress, size: Int, completion: Int) {
    self.address = address
    self.size = size
    self.completion = completion
  }

  /// No queue.
  static var none: Self { Self(DMAAddress(0), size: 0, completion: 0) }
  var isOpen: Bool { size > 0 }

  mutating func reach(_ memory: consuming RingMemory) {
    self.memory = memory
    isReached = true
    copied = 0
  }

  /// Where its memory is a copy: entries from the head on that are there.
  private var copied = 0

  /// Makes entries be there, up to `count` from the head on, where its memory is a copy.
  mutating func refresh(_ count: Int) throws(DMAFault) {
    guard memory.isRemote, copied == 0 else { return }
    let n = min(count, size - head)
    try memory.refresh(at: head * NVMeCommand.byteCount, count: n * NVMeCommand.byteCount)
    copied = n
  }

  /// Takes the next entry; its memory is mapped.
  mutating func fetch() -> NVMeCommand {
    copied = max(0, copied - 1)
    let at = head * NVMeCommand.byteCount
    let dwords = InlineArray<16, UInt32> { i in UInt32(littleEndian: memory.load32(at: at + 4 * i)) }
    head = head + 1 == size ? 0 : head + 1
    return NVMeCommand(dwords: dwords)
  }
}

/// A completion queue as the controller keeps it.
struct CompletionQueue: ~Copyable {
  static var entryBytes: Int { 16 }
  let address: DMAAddress
  let size: Int
  /// IV and IEN.
  let vector: Int
  let isInterrupting: Bool
  /// The first entry that the driver has not taken.
  var head = 0
  /// The next entry to write, and the phase it gets.
  var tail = 0
  var phase: UInt32 = 1
  /// Entries that commands in flight will need.
  var reserved = 0
  /// Whether entries were written without an interrupt message so far.
  var hasNews = false
  /// As of a submission queue, of the head.
  var reported: Int?
  private(set) var memory = RingMemory.none
  var isReached = false

  init(_ address: DMAAddress, size: Int, vector: Int, isInterrupting: Bool) {
    self.address = address
    self.size = size
    self.vector = vector
    self.isInterrupting = isInterrupting
  }

  /// No queue.
  static var none: Self { Self(DMAAddress(0), size: 0, vector: 0, isInterrupting: false) }
  var isOpen: Bool { size > 0 }

  mutating func reach(_ memory: consuming RingMemory) {
    self.memory = memory
    isReached = true
  }

  /// Whether an entry is free that no command in flight will need.
  var hasRoom: Bool {
    let occupied = tail >= head ? tail - head : tail + size - head
    return occupied + reserved < size - 1
  }
  /// Whether the driver has something to take.
  var isOccupied: Bool { head != tail }

  /// The driver took entries up to `new`. False: there are none.
  mutating func take(upTo new: Int) -> Bool {
    let written = tail >= head ? tail - head : tail + size - head
    let taken = new >= head ? new - head : new + size - head
    guard new < size, taken <= written else { return false }
    head = new
    return true
  }

  /// Writes an entry, its phase last; its memory is mapped, and it is not full. Returns what has to be done for the
  /// driver to see it, where the memory is a copy: the entry, and then its phase.
  mutating func post(
    _ result: UInt32, queue: Int, head submissionHead: Int, _ identifier: UInt16, _ status: NVMeStatus, _ log: DirtyLog?
  ) -> (entry: RemoteAccess, phase: RemoteAccess)? {
    let at = tail * Self.entryBytes
    memory.store32(result.littleEndian, at: at)
    memory.store32(0, at: at + 4)
    memory.store32((UInt32(submissionHead) | UInt32(queue) << 16).littleEndian, at: at + 8)
    // Do Not Retry: a command that fails here would fail again unchanged, unless it was called off.
    let retry: UInt32 = status.isSuccess || status.wasCalledOff ? 0 : 1 << 31
    memory.storeRelease32(
      (UInt32(identifier) | phase << 16 | UInt32(status.rawValue & 0x7ff) << 17 | retry).littleEndian, at: at + 12)
    if let log { memory.markDirty(log, at: at, count: Self.entryBytes) }
    hasNews = true
    tail += 1
    if tail == size {
      tail = 0
      phase ^= 1
    }
    guard let entry = memory.remoteWrite(at: at, count: 12), let phase = memory.remoteWrite(at: at + 12, count: 4)
    else { return nil }
    return (entry, phase)
  }
}
