import DMA
import HostIO
import Storage

/// How the controller comes and goes: enabling, queues, shutdown, reset.
extension ControllerWorker {
  mutating func enable(_ registers: ControllerState.Registers) {
    let new = registers.configuration
    let sizes = registers.adminQueueAttributes
    let (submissions, completions) = (Int(sizes & 0xfff) + 1, Int(sizes >> 16 & 0xfff) + 1)
    // CAP says what is possible; a driver that wants something else gets a controller that is not well.
    guard new.commandSet == 0, new.arbitration == 0, (12...16).contains(new.pageShift), submissions > 1, completions > 1
    else { return fail() }
    let page = UInt64(1) << UInt64(new.pageShift)
    guard registers.adminSubmissionQueue % page == 0, registers.adminCompletionQueue % page == 0 else { return fail() }
    do throws(HostError) {
      for namespace in namespaces where namespace.disk.options.lock == .running {
        uses.append(try ImageUse(namespace.disk.image))
      }
    } catch {
      uses = []
      faults.report("\(error)")
      return fail()
    }
    configuration = new
    pageSize = Int(page)
    features = ControllerFeatures(options)
    for namespace in namespaces { namespace.disk.cache.set(writeback: namespace.disk.options.writeback) }
    open(
      completion: 0,
      CompletionQueue(DMAAddress(registers.adminCompletionQueue), size: completions, vector: 0, isInterrupting: true))
    open(submission: 0, SubmissionQueue(DMAAddress(registers.adminSubmissionQueue), size: submissions, completion: 0))
    isRunning = true
    state.show(.ready)
  }

  mutating func open(submission i: Int, _ queue: consuming SubmissionQueue) {
    state.submissionTails[i].open(queue.size)
    submissions[i] = consume queue
    watchAreas()
  }

  mutating func open(completion i: Int, _ queue: consuming CompletionQueue) {
    state.completionHeads[i].open(queue.size)
    completions[i] = consume queue
    watchAreas()
  }

  mutating func close(submission i: Int) {
    state.submissionTails[i].close()
    submissions[i] = .none
  }

  mutating func close(completion i: Int) {
    state.completionHeads[i].close()
    completions[i] = .none
  }

  /// Only an unmap of these pages makes queues be looked up again.
  mutating func watchAreas() {
    var areas: [ClosedRange<UInt64>] = []
    func add(_ address: DMAAddress, _ count: Int) {
      let last = address.rawValue.addingReportingOverflow(UInt64(count - 1))
      areas.append(address.rawValue...(last.overflow ? .max : last.partialValue))
    }
    for i in 0..<submissions.count where submissions[i].isOpen {
      add(submissions[i].address, submissions[i].size * NVMeCommand.byteCount)
    }
    for i in 0..<completions.count where completions[i].isOpen {
      add(completions[i].address, completions[i].size * CompletionQueue.entryBytes)
    }
    if shadow.isOn {
      add(shadow.addresses.0, shadow.byteCount)
      add(shadow.addresses.1, shadow.byteCount)
    }
    iotlb.report(changesOf: areas)
  }

  mutating func shutDown() {
    for namespace in namespaces where !namespace.disk.file.isReadOnly {
      do throws(HostError) { try namespace.disk.file.flush() } catch { namespace.disk.faults.report("\(error)") }
    }
    state.show(.shutdownComplete)
  }

  /// Releases everything. Commands that were not taken are never done; what is in flight is called off or waited for.
  mutating func tearDown(_ ticket: UInt64?) {
    isRunning = false
    shadow.clear()
    abandon()
    for i in 0..<submissions.count { close(submission: i) }
    for i in 0..<completions.count { close(completion: i) }
    events = ControllerEvents()
    aborts = 0
    _ = state.takeStrays()
    uses = []
    outbox = ([], [])
    forgetInterrupts()
    if let ticket { state.didReset(ticket) }
  }
}
