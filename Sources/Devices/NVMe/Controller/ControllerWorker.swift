import DMA
import HostIO
import Storage

/// Why a command is not done.
struct Refusal: Error {
  var status: NVMeStatus
  init(_ status: NVMeStatus) { self.status = status }
}

/// The controller's thread: takes commands from submission queues in turn, does them, answers. Read ``round()`` first.
///
/// It owns the queues and the one cache of translations. A round holds the mappings that it uses; for input and output
/// of a command it is left (``letGo()``), and the pages of the command's data alone are held. So an unmap waits for
/// storage only if the command under way uses it. The thread waits for no other thread of this process.
struct ControllerWorker: ~Copyable {
  /// Commands of one queue before the next has its turn.
  static var burst: Int { 16 }

  let state: ControllerState
  let disk: BlockDisk
  let options: NVMeOptions
  let interrupts: ControllerInterrupts
  var iotlb: IOTLB
  var pool: SegmentPool
  /// By number; 0 is the admin queue.
  var submissions: FixedArray<SubmissionQueue>
  var completions: FixedArray<CompletionQueue>
  /// Whether CC.EN was obeyed, and nothing fatal has happened since.
  var isRunning = false
  /// Bytes of a page as the driver counts them.
  var pageSize = 4096
  var configuration = NVMeConfiguration(rawValue: 0)
  var features: ControllerFeatures
  var events = ControllerEvents()
  var logs = ControllerLogs()
  private var use: ImageUse?

  init(
    _ state: ControllerState, _ disk: BlockDisk, _ options: NVMeOptions, _ interrupts: ControllerInterrupts,
    _ space: any DMASpace
  ) {
    self.state = state
    self.disk = disk
    self.options = options
    self.interrupts = interrupts
    iotlb = IOTLB(space)
    pool = iotlb.makePool()
    submissions = FixedArray(count: options.ioQueues + 1) { _ in .none }
    completions = FixedArray(count: options.ioQueues + 1) { _ in .none }
    features = ControllerFeatures(options)
  }

  /// Works until it is stopped.
  mutating func run() {
    let wake = state.wakeDescriptor
    while true {
      if let taken = state.takeOrders() {
        if taken.mustReset { tearDown(taken.orders.reset) }
        if taken.orders.stop { break }
        if taken.orders.enable { enable(taken.registers) }
        if taken.orders.shutdown { shutDown() }
      }
      if round() { continue }
      do throws(HostError) {
        _ = try wake.wait()
        _ = try wake.drain()
      } catch {
        disk.faults.report("the controller's thread cannot wait: \(error)")
        fail()
        break
      }
    }
    tearDown(nil)
    state.didEnd()
  }

  /// One round: holds the mappings, looks at doorbells, gives each queue its turn, interrupts the driver. Returns
  /// whether there is more to do.
  private mutating func round() -> Bool {
    guard isRunning else { return false }
    takeHold()
    var isBusy = false
    noticeStrays()
    lookAtHeads()
    for queue in 0..<submissions.count where isRunning {
      if serve(queue) { isBusy = true }
      tell()
      if iotlb.isStale || state.isInterrupted {
        isBusy = true
        break
      }
    }
    answerEvents()
    tell()
    iotlb.dirtyLog?.announce()
    iotlb.endRound()
    return isBusy
  }

  /// Does some commands of a queue. Returns whether it stopped at its limit, so that there could be more.
  private mutating func serve(_ queue: Int) -> Bool {
    for _ in 0..<Self.burst {
      guard isRunning, !iotlb.isStale, !state.isInterrupted else { return true }
      // A command may have deleted the queue.
      guard let (head, size, completion) = place(queue) else { return false }
      let tail = state.submissionTails[queue].current
      guard tail < size, head != tail, !isFull(completion) else { return false }
      guard reach(submission: queue), reach(completion: completion) else {
        fail()
        return false
      }
      let command = submissions[queue].fetch()
      let now = submissions[queue].head
      var result: UInt32 = 0
      guard let status = queue == 0 ? administer(command, &result) : perform(command) else { continue }
      // A round that was left for storage may have lost the queue's memory; the command may have deleted the queue.
      guard isFull(completion) || reach(completion: completion) else {
        fail()
        return false
      }
      if !status.isSuccess { logs.note(status, of: command, queue: queue) }
      post(result, queue: queue, head: now, command.identifier, status, to: completion)
    }
    return true
  }

  private func place(_ queue: Int) -> (head: Int, size: Int, completion: Int)? {
    guard submissions[queue].isOpen else { return nil }
    return (submissions[queue].head, submissions[queue].size, submissions[queue].completion)
  }

  private func isFull(_ completion: Int) -> Bool {
    guard completions[completion].isOpen else { return true }
    return completions[completion].isFull
  }

  mutating func post(
    _ result: UInt32, queue: Int, head: Int, _ identifier: UInt16, _ status: NVMeStatus, to completion: Int
  ) {
    guard completions[completion].isOpen else { return }
    completions[completion].post(result, queue: queue, head: head, identifier, status, iotlb.dirtyLog)
  }

  /// Whether the admin completion queue takes an answer now.
  mutating func canAnswer() -> Bool {
    guard !isFull(0) else { return false }
    if reach(completion: 0) { return true }
    fail()
    return false
  }

  // MARK: Doorbells and interrupts

  private mutating func noticeStrays() {
    let strays = state.takeStrays()
    if strays.doorbells { events.raise(.invalidDoorbellRegister) }
    if strays.values { events.raise(.invalidDoorbellValue) }
  }

  private mutating func lookAtHeads() {
    for i in 0..<completions.count where completions[i].isOpen {
      let head = state.completionHeads[i].current
      guard head != completions[i].head else { continue }
      // A value that names entries never written changes nothing, and is reported once.
      if !completions[i].take(upTo: head) {
        events.raise(.invalidDoorbellValue)
        _ = state.completionHeads[i].ring(UInt32(completions[i].head))
      }
    }
  }

  /// Messages for what was written since the last time, and the pin.
  private mutating func tell() {
    var isPending = false
    for i in 0..<completions.count where completions[i].isOpen {
      guard completions[i].isInterrupting else { continue }
      if completions[i].isOccupied { isPending = true }
      if completions[i].hasNews {
        completions[i].hasNews = false
        interrupts.signal(completions[i].vector)
      }
    }
    interrupts.setPending(isPending)
  }

  // MARK: Memory of queues

  /// Lets mappings go while storage is at work. Until ``takeHold()`` no memory but that of the command's data may be
  /// touched.
  mutating func letGo() { iotlb.endRound() }

  /// Ends ``letGo()``. Queues are looked up again if mappings were taken away.
  mutating func takeHold() {
    if iotlb.beginRound() { forgetMemory() }
  }

  private mutating func forgetMemory() {
    for i in 0..<submissions.count { submissions[i].isReached = false }
    for i in 0..<completions.count { completions[i].isReached = false }
  }

  private mutating func reach(submission i: Int) -> Bool {
    if submissions[i].isReached { return true }
    let (address, count) = (submissions[i].address, submissions[i].size * NVMeCommand.byteCount)
    do throws(DMAInterruption) { submissions[i].reach(try iotlb.ring(address, count: count, for: .read)) } catch {
      return refused(error)
    }
    return true
  }

  private mutating func reach(completion i: Int) -> Bool {
    if completions[i].isReached { return true }
    let (address, count) = (completions[i].address, completions[i].size * CompletionQueue.entryBytes)
    do throws(DMAInterruption) { completions[i].reach(try iotlb.ring(address, count: count, for: .write)) } catch {
      return refused(error)
    }
    return true
  }

  private func refused(_ error: DMAInterruption) -> Bool {
    if case .fault(let fault) = error { iotlb.space.report(fault) }
    return false
  }

  // MARK: Coming and going

  private mutating func enable(_ registers: ControllerState.Registers) {
    let new = registers.configuration
    let sizes = registers.adminQueueAttributes
    let (submissions, completions) = (Int(sizes & 0xfff) + 1, Int(sizes >> 16 & 0xfff) + 1)
    // CAP says what is possible; a driver that wants something else gets a controller that is not well.
    guard new.commandSet == 0, new.arbitration == 0, (12...16).contains(new.pageShift), submissions > 1, completions > 1
    else { return fail() }
    let page = UInt64(1) << UInt64(new.pageShift)
    guard registers.adminSubmissionQueue % page == 0, registers.adminCompletionQueue % page == 0 else { return fail() }
    if options.disk.lock == .running {
      do throws(HostError) {
        use = try ImageUse(disk.image)
      } catch {
        disk.faults.report("\(error)")
        return fail()
      }
    }
    configuration = new
    pageSize = Int(page)
    features = ControllerFeatures(options)
    disk.cache.set(writeback: options.disk.writeback)
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
  }

  mutating func open(completion i: Int, _ queue: consuming CompletionQueue) {
    state.completionHeads[i].open(queue.size)
    completions[i] = consume queue
  }

  mutating func close(submission i: Int) {
    state.submissionTails[i].close()
    submissions[i] = .none
  }

  mutating func close(completion i: Int) {
    state.completionHeads[i].close()
    completions[i] = .none
  }

  /// Nothing goes on before a reset.
  mutating func fail() {
    isRunning = false
    state.show(.fatal)
  }

  private mutating func shutDown() {
    if !disk.file.isReadOnly {
      do throws(HostError) { try disk.file.flush() } catch { disk.faults.report("\(error)") }
    }
    state.show(.shutdownComplete)
  }

  /// Releases everything. Commands that were not taken are never done.
  private mutating func tearDown(_ ticket: UInt64?) {
    for i in 0..<submissions.count { close(submission: i) }
    for i in 0..<completions.count { close(completion: i) }
    isRunning = false
    events = ControllerEvents()
    _ = state.takeStrays()
    use = nil
    interrupts.reset()
    if let ticket { state.didReset(ticket) }
  }
}
