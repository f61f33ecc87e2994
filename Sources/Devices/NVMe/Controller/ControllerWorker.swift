import DMA
import HostIO
import Storage

/// Why a command is not done.
struct Refusal: Error {
  var status: NVMeStatus
  init(_ status: NVMeStatus) { self.status = status }
}

/// The controller's thread: takes commands from submission queues in turn, has the host do them, many at once, and
/// answers. Read ``round()`` first.
///
/// It owns the queues and the one cache of translations. A round holds the mappings that it uses; while the host is
/// called it is left (``letGo()``), and the pages of the data of commands in flight alone are held. So an unmap waits
/// for storage only if such a command uses it. The thread waits for no other thread of this process.
///
/// Memory of the driver is touched in few places: ``take(_:)`` fetches an entry of a submission queue, ``post(_:_:_:)``
/// writes one of a completion queue, `table(at:count:_:)` reads a list that says where data is, and ``release(_:filled:)``
/// ends what a command may write.
struct ControllerWorker: ~Copyable {
  /// Commands of one queue before the next has its turn.
  static var burst: Int { 64 }
  /// Most commands in flight, of all queues.
  static var mostInFlight: Int { 1024 }
  /// Pieces of memory that long commands in flight have storage for: a driver decides how its data is scattered.
  static var mostPieces: Int { 1 << 16 }

  let state: ControllerState
  let options: NVMeOptions
  let interrupts: ControllerInterrupts
  var namespaces: [Namespace]
  let identity: ControllerIdentity
  var iotlb: IOTLB
  // Before the slots: it ends first, and waits for the host to let go of the commands' memory.
  var ring = DiskRing()
  var slots: SlotTable<InFlightCommand>
  var pool: SegmentPool
  /// Entries of completion queues in memory that another process has, sent before the driver is told, and then their
  /// phases.
  var outbox: (entries: [RemoteAccess], phases: [RemoteAccess]) = ([], [])
  /// Pieces that there is storage for now, for commands in flight that are not short.
  var pieces = 0
  /// By number; 0 is the admin queue.
  var submissions: FixedArray<SubmissionQueue>
  var completions: FixedArray<CompletionQueue>
  var shadow = ShadowDoorbells()
  /// Whether CC.EN was obeyed, and nothing fatal has happened since.
  var isRunning = false
  /// Bytes of a page as the driver counts them.
  var pageSize = 4096
  var configuration = NVMeConfiguration(rawValue: 0)
  var features: ControllerFeatures
  var events = ControllerEvents()
  var logs = ControllerLogs()
  /// Aborts that wait for their command.
  var aborts = 0
  /// Whether a completion queue has entries that no interrupt was sent for.
  private var hasNews = false
  /// Stays awake for a while after commands, where doorbells are in memory and cost the driver nothing.
  private var polling = BusyPolling()
  /// Whether the round has taken a command, or answered one.
  private var hasWorked = false
  private var wasPending = false
  var uses: [ImageUse] = []

  init(
    _ state: ControllerState, _ disks: NamespaceDisks, _ options: NVMeOptions, _ interrupts: ControllerInterrupts,
    _ space: any DMASpace
  ) {
    self.state = state
    self.options = options
    self.interrupts = interrupts
    namespaces = disks.all.map { Namespace($0.disk, engine: $0.engine) }
    identity = ControllerIdentity(options)
    iotlb = IOTLB(space)
    let depth = min(Self.mostInFlight, options.ioQueues * (options.queueSize - 1))
    slots = SlotTable(capacity: depth)
    pool = iotlb.makePool(keeping: depth + 4)
    submissions = FixedArray(count: options.ioQueues + 1) { _ in .none }
    completions = FixedArray(count: options.ioQueues + 1) { _ in .none }
    features = ControllerFeatures(options)
    if let first = namespaces.first(where: { $0.usesRing }) { makeRing(depth, for: first.disk) }
  }

  /// Without a ring everything is done on the spot.
  private mutating func makeRing(_ depth: Int, for disk: BlockDisk) {
    do throws(HostError) {
      ring = try DiskRing(depth: depth, signalling: state.wakeDescriptor, for: disk.file)
    } catch {
      disk.faults.report("commands are done one after the other: \(error)")
    }
  }

  var faults: FaultReporter { namespaces[0].disk.faults }

  /// Works until it is stopped.
  mutating func run() {
    while true {
      state.beginLooking()
      if let taken = state.takeOrders() {
        if taken.mustReset { tearDown(taken.orders.reset) }
        if taken.orders.stop { break }
        if taken.orders.enable { enable(taken.registers) }
        if taken.orders.shutdown { shutDown() }
      }
      hasWorked = false
      let staysAwake = polling.begin(isAllowed: isRunning && shadow.isOn)
      let isBusy = round(arming: !staysAwake)
      polling.end(foundWork: hasWorked)
      if isBusy { continue }
      if polling.isAwake {
        // The thread that was interrupted may be waiting for this very processor.
        WorkerThread.yield()
        continue
      }
      do throws(HostError) {
        try state.sleep()
      } catch {
        faults.report("the controller's thread cannot wait: \(error)")
        fail()
        break
      }
    }
    tearDown(nil)
    state.didEnd()
  }

  /// One round: holds the mappings, answers what the host has done, looks at doorbells, gives each queue its turn,
  /// interrupts the driver. Returns whether there is more to do.
  ///
  /// - Parameter arming: the thread may sleep afterwards.
  private mutating func round(arming: Bool) -> Bool {
    // Commands in flight hold their memory until they are reaped, whatever became of the controller.
    guard isRunning || slots.count > 0 else { return false }
    takeHold()
    drain()
    var isBusy = false
    if isRunning {
      noticeStrays()
      noticeResizes()
      lookAtHeads()
      for queue in 0..<submissions.count where isRunning {
        if serve(queue) { isBusy = true }
        if hasNews { tell() }
        if iotlb.isStale || state.isInterrupted {
          isBusy = true
          break
        }
      }
      submit()
      answerEvents()
      tell()
      // The last look before sleep: from then on doorbells wake this thread.
      if arming, !isBusy, isRunning, prepareToSleep() { isBusy = true }
    }
    if ring.hasPendingWork { isBusy = true }
    iotlb.dirtyLog?.announce()
    iotlb.endRound()
    return isBusy
  }

  /// Begins some commands of a queue. Returns whether it stopped at its limit, so that there could be more.
  private mutating func serve(_ queue: Int) -> Bool {
    for _ in 0..<Self.burst {
      guard isRunning, !iotlb.isStale, !state.isInterrupted else { return true }
      // A command may have deleted the queue, or made the next one wait.
      let count = waiting(in: queue)
      guard count > 0 else { return false }
      guard reach(submission: queue), reach(completion: submissions[queue].completion) else {
        fail()
        return false
      }
      guard refresh(queue, count) else { return false }
      let command = take(queue)
      if queue == 0 { administer(command) } else { perform(command, queue, isLast: count == 1) }
    }
    return true
  }

  /// Commands of a queue that can be taken now.
  private mutating func waiting(in queue: Int) -> Int {
    guard submissions[queue].isOpen, submissions[queue].deletion == nil else { return 0 }
    let tail = tail(of: queue)
    let (head, size, completion) = (
      submissions[queue].head, submissions[queue].size, submissions[queue].completion
    )
    guard head != tail else { return 0 }
    guard tail < size else {
      events.raise(.invalidDoorbellValue)
      return 0
    }
    guard completions[completion].isOpen, completions[completion].hasRoom, queue == 0 || canHold else {
      return 0
    }
    return tail >= head ? tail - head : tail + size - head
  }

  /// Where the driver's commands of a queue end. It may be any value: a shadow doorbell is memory of the driver's.
  func tail(of queue: Int) -> Int {
    shadow.tail(of: queue) ?? state.submissionTails[queue].current
  }

  /// Fetches the next command of a queue, whose memory is reached: the one place that does. There will be room for its
  /// answer.
  private mutating func take(_ queue: Int) -> NVMeCommand {
    hasWorked = true
    submissions[queue].inFlight += 1
    completions[submissions[queue].completion].reserved += 1
    return submissions[queue].fetch()
  }

  /// Ends a command that was taken.
  mutating func answer(_ record: CommandRecord, _ status: NVMeStatus, result: UInt32 = 0) {
    giveUpRoom(record)
    if !status.isSuccess { logs.note(status, of: record) }
    post(record, status, result)
    guard let deletion = submissions[record.queue].deletion, submissions[record.queue].inFlight == 0 else { return }
    close(submission: record.queue)
    answer(deletion, .success)
  }

  /// A command that was taken needs its entry now, or not for the time being.
  mutating func giveUpRoom(_ record: CommandRecord) {
    submissions[record.queue].inFlight -= 1
    completions[submissions[record.queue].completion].reserved -= 1
  }

  /// Writes an entry of a completion queue, in which there is room: the one place that does.
  mutating func post(_ record: CommandRecord, _ status: NVMeStatus, _ result: UInt32) {
    guard isRunning else { return }
    let completion = submissions[record.queue].completion
    // A round that was left for storage may have lost the queue's memory.
    guard reach(completion: completion) else { return fail() }
    let writes = completions[completion].post(
      result, queue: record.queue, head: submissions[record.queue].head, record.identifier, status, iotlb.dirtyLog)
    if let writes {
      outbox.entries.append(writes.entry)
      outbox.phases.append(writes.phase)
    }
    hasNews = true
    hasWorked = true
  }

  /// Ends a command's use of its data's memory, of which it may have written the first `filled` bytes: the one place
  /// where what a driver gets is final.
  mutating func release(_ memory: consuming ChainMemory, filled: Int) {
    // The log in force now.
    if filled > 0, let log = iotlb.dirtyLog { memory.writable.markDirty(log, count: filled) }
    pool.give(back: memory)
  }

  // MARK: Doorbells and interrupts

  private mutating func noticeStrays() {
    guard let strays = state.takeStrays() else { return }
    if strays.doorbells { events.raise(.invalidDoorbellRegister) }
    if strays.values { events.raise(.invalidDoorbellValue) }
  }

  private mutating func noticeResizes() {
    guard let changed = state.takeResizes() else { return }
    logs.changed.formUnion(changed)
    if features[.asynchronousEventConfiguration] & ControllerEvents.namespaceNotices != 0 {
      events.raise(.namespaceChanged)
    }
  }

  mutating func lookAtHeads() {
    for i in 0..<completions.count where completions[i].isOpen { lookAtHead(i) }
  }

  /// Returns whether the driver took something.
  @discardableResult
  mutating func lookAtHead(_ i: Int) -> Bool {
    let head = shadow.head(of: i) ?? state.completionHeads[i].current
    guard head != completions[i].head else { return false }
    if completions[i].take(upTo: head) { return true }
    // A value that names entries never written changes nothing, and is reported once.
    events.raise(.invalidDoorbellValue)
    _ = state.completionHeads[i].ring(UInt32(completions[i].head))
    return false
  }

  /// Messages for what was written since the last time, and the pin.
  private mutating func tell() {
    if !outbox.entries.isEmpty { deliverEntries() }
    var isPending = false
    for i in 0..<completions.count where completions[i].isOpen {
      guard completions[i].isInterrupting else { continue }
      if completions[i].isOccupied { isPending = true }
      if hasNews, completions[i].hasNews {
        completions[i].hasNews = false
        interrupts.signal(completions[i].vector)
      }
    }
    hasNews = false
    guard isPending != wasPending else { return }
    wasPending = isPending
    interrupts.setPending(isPending)
  }

  /// As after a reset.
  mutating func forgetInterrupts() {
    hasNews = false
    wasPending = false
    interrupts.reset()
  }

  /// Nothing goes on before a reset.
  mutating func fail() {
    isRunning = false
    state.show(.fatal)
  }
}
