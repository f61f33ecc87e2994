import DMA

/// The admin command set (5).
extension ControllerWorker {
  /// Aborts that may wait for their commands: ACL, and one.
  static var mostAborts: Int { 4 }

  /// Does an admin command. Some are kept, and answered when there is something to say.
  mutating func administer(_ command: borrowing NVMeCommand) {
    let record = CommandRecord(command, queue: 0)
    var result: UInt32 = 0
    do throws(Refusal) {
      guard let opcode = NVMeAdminOpcode(rawValue: command.opcode) else { throw Refusal(.invalidOpcode) }
      guard command.fused == 0 else { throw Refusal(.invalidField) }
      switch opcode {
      case .createCompletionQueue: try createCompletionQueue(command)
      case .createSubmissionQueue: try createSubmissionQueue(command)
      case .deleteCompletionQueue: try deleteCompletionQueue(command)
      case .deleteSubmissionQueue: guard try deleteSubmissionQueue(command, record) else { return }
      case .identify: try identify(command)
      case .getLogPage: try getLogPage(command)
      case .getFeatures: result = try getFeatures(command)
      case .setFeatures: result = try setFeatures(command)
      case .abort:
        guard let known = try abort(command, record) else { return }
        result = known
      case .asynchronousEventRequest:
        guard events.keep(record) else { throw Refusal(.eventRequestLimitExceeded) }
        return giveUpRoom(record)
      case .doorbellBufferConfig:
        try configureDoorbells(command)
        watchAreas()
      }
    } catch {
      return answer(record, error.status)
    }
    answer(record, .success, result: result)
  }

  /// Gives a driver bytes of ours, from the start of its data on.
  mutating func yield(_ bytes: [UInt8], to command: borrowing NVMeCommand) throws(Refusal) {
    let memory = try data(of: command, count: bytes.count, for: .write, isAdmin: true).seal(iotlb, fault: nil)
    _ = memory.writable.copy(bytes.span, to: 0)
    let isDelivered = deliver(memory, filled: bytes.count)
    release(memory, filled: bytes.count)
    guard isDelivered else { throw Refusal(.dataTransferError) }
  }

  // MARK: I/O queues

  /// Queue number and size of a command that makes one, and where it is.
  private func newQueue(
    _ command: borrowing NVMeCommand, isTaken: (Int) -> Bool
  ) throws(Refusal) -> (number: Int, size: Int, address: DMAAddress) {
    let number = Int(command.dwords[10] & 0xffff)
    let size = Int(command.dwords[10] >> 16) + 1
    guard number > 0, number < submissions.count, !isTaken(number) else { throw Refusal(.invalidQueueIdentifier) }
    guard size > 1, size <= options.queueSize else { throw Refusal(.invalidQueueSize) }
    // Queues are contiguous: CAP.CQR.
    guard command.dwords[11] & 1 != 0 else { throw Refusal(.invalidField) }
    guard command.pointer1 & UInt64(pageSize - 1) == 0 else { throw Refusal(.prpOffsetInvalid) }
    return (number, size, DMAAddress(command.pointer1))
  }

  private mutating func createCompletionQueue(_ command: borrowing NVMeCommand) throws(Refusal) {
    let new = try newQueue(command) { number in number > features.completionQueues || completions[number].isOpen }
    guard configuration.completionEntryShift == 4 else { throw Refusal(.invalidQueueSize) }
    let vector = Int(command.dwords[11] >> 16)
    guard vector < interrupts.vectorCount else { throw Refusal(.invalidInterruptVector) }
    open(
      completion: new.number,
      CompletionQueue(new.address, size: new.size, vector: vector, isInterrupting: command.dwords[11] & 2 != 0))
  }

  private mutating func createSubmissionQueue(_ command: borrowing NVMeCommand) throws(Refusal) {
    let new = try newQueue(command) { number in number > features.submissionQueues || submissions[number].isOpen }
    guard configuration.submissionEntryShift == 6 else { throw Refusal(.invalidQueueSize) }
    let completion = Int(command.dwords[11] >> 16)
    guard completion > 0, completion < completions.count, completions[completion].isOpen else {
      throw Refusal(.completionQueueInvalid)
    }
    open(submission: new.number, SubmissionQueue(new.address, size: new.size, completion: completion))
  }

  private mutating func deleteCompletionQueue(_ command: borrowing NVMeCommand) throws(Refusal) {
    let number = Int(command.dwords[10] & 0xffff)
    guard number > 0, number < completions.count, completions[number].isOpen else {
      throw Refusal(.invalidQueueIdentifier)
    }
    for i in 0..<submissions.count where submissions[i].isOpen {
      guard submissions[i].completion != number else { throw Refusal(.invalidQueueDeletion) }
    }
    close(completion: number)
  }

  /// Commands that were not taken from the queue go with it, those in flight are called off or waited for. Whether it
  /// is done.
  private mutating func deleteSubmissionQueue(
    _ command: borrowing NVMeCommand, _ record: CommandRecord
  ) throws(Refusal) -> Bool {
    let number = Int(command.dwords[10] & 0xffff)
    guard number > 0, number < submissions.count, submissions[number].isOpen, submissions[number].deletion == nil else {
      throw Refusal(.invalidQueueIdentifier)
    }
    guard submissions[number].inFlight > 0 else {
      close(submission: number)
      return true
    }
    submissions[number].deletion = record
    callOff(number)
    return false
  }

  // MARK: Events and abortion

  /// Bit 0 of the result: nothing was aborted. Nil: that is not known yet.
  private mutating func abort(_ command: borrowing NVMeCommand, _ record: CommandRecord) throws(Refusal) -> UInt32? {
    let (queue, identifier) = (Int(command.dwords[10] & 0xffff), UInt16(command.dwords[10] >> 16))
    if queue == 0 {
      // The aborted request's answer needs an entry too, and comes before this one.
      guard events.holds(identifier), completions[0].hasRoom, let request = events.forget(identifier) else { return 1 }
      post(request, .abortRequested, 0)
      return 0
    }
    guard aborts < Self.mostAborts else { throw Refusal(.abortLimitExceeded) }
    for slot in 0..<slots.capacity {
      var isMeant = false
      let isThere = slots.update(slot) { one in
        isMeant = one.record.queue == queue && one.record.identifier == identifier && one.abort == nil
        if isMeant { one.abort = record }
      }
      guard isThere, isMeant else { continue }
      aborts += 1
      guard cancel(slot, tag: abortTag(slot, record)) else {
        aborts -= 1
        _ = slots.update(slot) { $0.abort = nil }
        return 1
      }
      return nil
    }
    return 1
  }

  /// Answers requests for events that there are.
  mutating func answerEvents() {
    while isRunning, events.canAnswer, completions[0].isOpen, completions[0].hasRoom {
      guard let (request, result) = events.answer() else { return }
      post(request, .success, result)
    }
  }
}
