import DMA

/// The admin command set (5).
extension ControllerWorker {
  /// Does an admin command. Nil: it is kept, and answered when there is something to say.
  mutating func administer(_ command: borrowing NVMeCommand, _ result: inout UInt32) -> NVMeStatus? {
    do throws(Refusal) {
      guard let opcode = NVMeAdminOpcode(rawValue: command.opcode) else { throw Refusal(.invalidOpcode) }
      guard command.fused == 0 else { throw Refusal(.invalidField) }
      switch opcode {
      case .createCompletionQueue: try createCompletionQueue(command)
      case .createSubmissionQueue: try createSubmissionQueue(command)
      case .deleteCompletionQueue: try deleteCompletionQueue(command)
      case .deleteSubmissionQueue: try deleteSubmissionQueue(command)
      case .identify: try identify(command)
      case .getLogPage: try getLogPage(command)
      case .getFeatures: result = try getFeatures(command)
      case .setFeatures: result = try setFeatures(command)
      case .abort: result = abort(command)
      case .asynchronousEventRequest:
        guard events.keep(command.identifier) else { throw Refusal(.eventRequestLimitExceeded) }
        return nil
      }
      return .success
    } catch {
      return error.status
    }
  }

  /// Gives a driver bytes of ours, from the start of its data on.
  mutating func yield(_ bytes: [UInt8], to command: borrowing NVMeCommand) throws(Refusal) {
    let list = try data(of: command, count: bytes.count, for: .write, isAdmin: true)
    let view = list.writable
    _ = view.copy(bytes.span, to: 0)
    if let log = iotlb.dirtyLog { view.markDirty(log, count: bytes.count) }
    pool.give(back: list)
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

  /// Commands that were not taken from the queue go with it: no command is under way while another is done.
  private mutating func deleteSubmissionQueue(_ command: borrowing NVMeCommand) throws(Refusal) {
    let number = Int(command.dwords[10] & 0xffff)
    guard number > 0, number < submissions.count, submissions[number].isOpen else {
      throw Refusal(.invalidQueueIdentifier)
    }
    close(submission: number)
  }

  // MARK: Events and abortion

  /// Only requests for events are ever under way (5.1). Bit 0 of the result: nothing was aborted.
  private mutating func abort(_ command: borrowing NVMeCommand) -> UInt32 {
    let (queue, identifier) = (command.dwords[10] & 0xffff, UInt16(command.dwords[10] >> 16))
    // The abortion's own answer needs an entry too, and comes after this one.
    guard queue == 0, events.holds(identifier), hasRoomForTwo else { return 1 }
    events.forget(identifier)
    post(0, queue: 0, head: adminHead, identifier, .abortRequested, to: 0)
    return 0
  }

  private var hasRoomForTwo: Bool {
    guard completions[0].isOpen else { return false }
    let (head, tail, size) = (completions[0].head, completions[0].tail, completions[0].size)
    return (head + size - tail - 1) % size >= 2
  }

  /// Answers requests for events that there are.
  mutating func answerEvents() {
    while isRunning, events.canAnswer, canAnswer() {
      guard let (identifier, result) = events.answer() else { return }
      post(result, queue: 0, head: adminHead, identifier, .success, to: 0)
    }
  }
}

extension ControllerWorker {
  /// Where the admin submission queue stands.
  private var adminHead: Int {
    guard submissions[0].isOpen else { return 0 }
    return submissions[0].head
  }
}
