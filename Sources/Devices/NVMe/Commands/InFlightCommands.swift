import DMA
import HostIO
import Storage

/// An I/O command that the host works on.
struct InFlightCommand: ~Copyable {
  let record: CommandRecord
  /// Of its data, or of nothing.
  let memory: ChainMemory
  var transfer: DiskTransfer
  /// From 0.
  var namespace: Int
  /// Whether its changes have to be stable when it ends.
  var isDurable = false
  /// A flush of all namespaces: the next one's follows.
  var isOfAll = false
  /// Bytes of a write zeroes, and its DEAC.
  var zeroes: UInt64 = 0
  var mayUnmap = false
  /// The abort that waits for its end.
  var abort: CommandRecord?

  /// Pieces of memory that it has storage for; 0 if it is short.
  var pieces: Int { memory.capacity > 32 ? memory.capacity : 0 }

  init(_ record: CommandRecord, _ namespace: Int, _ operation: DiskOperation, _ memory: consuming ChainMemory) {
    self.record = record
    self.namespace = namespace
    let segments = operation.isRead ? memory.writable.segmentCount : memory.readable.segmentCount
    self.memory = memory
    transfer = DiskTransfer(operation, segments: 0..<segments)
  }
}

/// I/O commands through the ring: what the ring cannot take is done without it, the thread waiting, so every command
/// ends; without a ring that is all of them.
extension ControllerWorker {
  /// Whether there may be one more.
  var canHold: Bool { !slots.isFull && pieces < Self.mostPieces }

  /// Begins a command that was examined.
  ///
  /// - Parameter isLast: nothing is known to follow it.
  mutating func start(_ command: consuming InFlightCommand, isLast: Bool) {
    let at = command.namespace
    guard ring.isThere, namespaces[at].usesRing else { return finish(command) }
    let (position, count) = (command.transfer.operation.position, command.transfer.operation.count)
    switch command.transfer.operation.kind {
    // For a command alone: several cost less through the ring, which takes them all in one call.
    case .read where isLast && ring.unsubmitted == 0 && namespaces[at].policy.isWorthTrying:
      letGo()
      let result = namespaces[at].disk.file.readImmediately(
        into: command.memory.writable, command.transfer.segments, at: position)
      takeHold()
      namespaces[at].policy.learn(from: result, wanted: count)
      if result == .read(count) {
        command.transfer.done = count
        return end(command, .success)
      }
    case .write(durable: false) where namespaces[at].policy.isWorthWriting(at: position, count: count):
      return finish(command)
    default: break
    }
    proceed(command)
  }

  /// Hands the next part of a command to the host, or ends the command.
  private mutating func proceed(_ command: consuming InFlightCommand) {
    var queued = enqueue(&command)
    if queued == .full {
      submit(reaping: false)
      queued = enqueue(&command)
    }
    guard queued == .queued else { return finish(command) }
    pieces += command.pieces
    _ = slots.insert(command)
  }

  /// Queues a command's next part under the tag of the next free slot.
  private mutating func enqueue(_ command: inout InFlightCommand) -> IOUring.Queued {
    guard !slots.isFull else { return .unsuitable }
    let disk = namespaces[command.namespace].disk
    var transfer = command.transfer
    let queued = ring.queue(
      &transfer, of: disk.file, command.memory.readable, command.memory.writable, tag: UInt64(slots.nextIndex)
    ) { command.range($0, of: disk) }
    command.transfer = transfer
    return queued
  }

  /// Does what is left of a command on the spot.
  private mutating func finish(_ command: consuming InFlightCommand) {
    let disk = namespaces[command.namespace].disk
    let transfer = command.transfer
    letGo()
    let outcome = disk.finish(
      transfer, command.memory.readable, command.memory.writable, isDurable: command.isDurable
    ) { command.range($0, of: disk) }
    takeHold()
    switch outcome {
    case .done:
      command.transfer.done = transfer.operation.count
      ended(command)
    case .failed(let done):
      if transfer.operation.isRead { command.transfer.done = done }
      end(command, Self.failure(transfer.operation))
    case .refused: end(command, .lbaOutOfRange)
    }
  }

  private static func failure(_ operation: DiskOperation) -> NVMeStatus {
    operation.isRead ? .unrecoveredReadError : .writeFault
  }

  // MARK: Completions

  /// Takes what the host has done, and starts what follows from it, for one turn.
  mutating func drain() {
    guard ring.hasPendingWork else { return }
    var budget = ReapingBudget()
    while true {
      letGo()
      let count = ring.reap()
      takeHold()
      for i in ring.completions.indices {
        let (tag, result) = (ring.completions.tag(i), ring.completions.result(i))
        if tag > UInt64(UInt32.max) {
          answerAbort(tag, result)
        } else if let command = slots.remove(Int(truncatingIfNeeded: tag)) {
          pieces -= command.pieces
          advance(command, result)
        }
      }
      guard ring.hasPendingWork, budget.goesOn(after: count) else { return }
    }
  }

  private mutating func advance(_ command: consuming InFlightCommand, _ result: Int32) {
    switch command.transfer.complete(result) {
    case .done: ended(command)
    case .more: proceed(command)
    case .fallback: finish(command)
    case .failed(_, .canceled):
      end(command, submissions[command.record.queue].deletion == nil ? .abortRequested : .abortedByDeletion)
    case .failed(let call, let number):
      let disk = namespaces[command.namespace].disk
      disk.faults.report("\(HostError(call, errno: number, subject: disk.file.path))")
      end(command, Self.failure(command.transfer.operation))
    case .flush where command.isDurable:
      command.transfer.operation = DiskOperation(kind: .flush)
      proceed(command)
    case .flush: end(command, .success)
    }
  }

  /// A command's operation is done.
  private mutating func ended(_ command: consuming InFlightCommand) {
    guard command.isOfAll, command.namespace + 1 < namespaces.count else { return end(command, .success) }
    command.namespace += 1
    command.transfer = DiskTransfer(DiskOperation(kind: .flush), segments: 0..<0)
    start(command, isLast: false)
  }

  /// A command ends.
  private mutating func end(_ command: consuming InFlightCommand, _ status: NVMeStatus) {
    let (record, abort) = (command.record, command.abort)
    let operation = command.transfer.operation
    var status = status
    if status.isSuccess, operation.isRead, !deliver(command.memory, filled: command.transfer.done) {
      status = .dataTransferError
    }
    switch operation.kind {
    case .read where status.isSuccess: logs.count(read: operation.count)
    case .write where status.isSuccess: logs.count(written: operation.count)
    default: if status.isMediumError { logs.mediumErrors &+= 1 }
    }
    // After an error it is not known how much has arrived.
    let filled = operation.isRead ? (status.isSuccess ? command.transfer.done : operation.count) : 0
    release(command.memory, filled: filled)
    answer(record, status)
    if let abort {
      aborts -= 1
      answer(abort, .success, result: status == .abortRequested ? 0 : 1)
    }
  }

  // MARK: The ring

  /// Hands queued commands over. What the host does at once is answered at once.
  mutating func submit(reaping: Bool = true) {
    while ring.unsubmitted > 0 {
      letGo()
      let isDone = ring.submit(faults)
      takeHold()
      // The event brings the thread back, whether completions come or not.
      guard isDone else { return ring.comeBack() }
      if reaping { drain() } else { return }
    }
  }

  /// Cancels a queue's commands that the host has not begun or can be kept from; the rest end by themselves.
  mutating func callOff(_ queue: Int) {
    for slot in 0..<slots.capacity {
      var isMeant = false
      guard slots.update(slot, { isMeant = $0.record.queue == queue }), isMeant else { continue }
      _ = cancel(slot, tag: DiskRing.noRequest)
    }
  }

  func abortTag(_ slot: Int, _ abort: CommandRecord) -> UInt64 {
    1 << 48 | UInt64(abort.identifier) << 32 | UInt64(slot)
  }

  /// False: the ring has no room for it.
  mutating func cancel(_ slot: Int, tag: UInt64) -> Bool {
    if ring.cancel(UInt64(slot), tag: tag) == .queued { return true }
    submit(reaping: false)
    return ring.cancel(UInt64(slot), tag: tag) == .queued
  }

  /// Whether the host could be kept from a command is known. If so the command's own end follows.
  private mutating func answerAbort(_ tag: UInt64, _ result: Int32) {
    guard tag != DiskRing.noRequest, result < 0 else { return }
    let identifier = UInt16(truncatingIfNeeded: tag >> 32)
    var found: CommandRecord?
    _ = slots.update(Int(UInt32(truncatingIfNeeded: tag))) { command in
      guard command.abort?.identifier == identifier else { return }
      found = command.abort
      command.abort = nil
    }
    guard let found else { return }
    aborts -= 1
    answer(found, .success, result: 1)
  }

  /// Waits until nothing is in flight, and answers all of it.
  mutating func settle() {
    while slots.count > 0, isRunning {
      submit()
      if slots.count > 0, !ring.hasPendingWork {
        letGo()
        ring.wait(faults)
        takeHold()
      }
      drain()
    }
  }

  /// Calls off everything in flight and waits for the rest: nothing touches the commands' memory any more. None is
  /// answered.
  mutating func abandon() {
    guard slots.count > 0 else { return }
    for slot in 0..<slots.capacity where slots.update(slot, { _ in }) { _ = cancel(slot, tag: DiskRing.noRequest) }
    letGo()
    while slots.count > 0 {
      if !ring.hasPendingWork { ring.wait(faults) }
      _ = ring.reap()
      takeHold()
      for i in ring.completions.indices {
        let tag = ring.completions.tag(i)
        guard tag <= UInt64(UInt32.max), let command = slots.remove(Int(truncatingIfNeeded: tag)) else { continue }
        pieces -= command.pieces
        let operation = command.transfer.operation
        release(command.memory, filled: operation.isRead ? operation.count : 0)
      }
      letGo()
    }
  }
}
