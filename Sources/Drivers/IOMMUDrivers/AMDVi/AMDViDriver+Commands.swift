public import DMA
internal import DriverDMA
public import IOMMUInterface

extension AMDViDriver: InvalidatingUnit {
  func startCommands() throws(UnitError) {
    try setControl(control & ~AMDViRegister.takesCommands)
    commands.clear()
    registers.write(AMDViRegister.buffer(at: commands.start), at: AMDViRegister.commandBuffer, width: 8)
    registers.write(0, at: AMDViRegister.commandHead, width: 8)
    registers.write(0, at: AMDViRegister.commandTail, width: 8)
    try setControl(control | AMDViRegister.takesCommands)
  }

  func post(_ command: AMDViCommand) {
    if commands.isFull, !complete() { commands.hasFailed = true }
    commands.put(command.low, command.high)
  }

  /// Units that remember that there was nothing say so in their PCI capability, which no unit here has.
  var remembersNothing: Bool { false }

  func postDomain(_ domain: UInt16) { postPages(of: domain, from: 0, through: .max, keepsTables: false) }

  func postPages(of domain: UInt16, from first: UInt64, through last: UInt64, keepsTables: Bool) {
    post(.pages(of: domain, from: first, through: last, keepsTables: keepsTables))
  }

  func postKept(in domain: UInt16, from first: UInt64, through last: UInt64) {
    for requester in domainIDs.translationCachers(in: domain) {
      post(.deviceIOTLB(of: requester, from: first, through: last))
    }
  }

  /// As the protocol says; after a failure the buffer is started anew, without what was in it.
  func complete() -> Bool {
    guard !commands.isBroken else { return false }
    let token = commands.nextToken()
    let end = AMDViCommand.completionWait(storing: token, at: commands.status)
    commands.put(end.low, end.high)
    registers.write(commands.tail, at: AMDViRegister.commandTail, width: 8)
    // Nothing comes from a buffer that stands still at an error.
    var isStanding = false
    let hasAnswer = wait.until {
      if commands.isDone { return true }
      isStanding = registers.read(at: AMDViRegister.status, width: 8) & AMDViRegister.commandsRun == 0
      return isStanding
    }
    let hadFailed = commands.settle()
    guard hasAnswer, !isStanding else {
      do throws(UnitError) { try startCommands() } catch { commands.isBroken = true }
      return false
    }
    return !hadFailed
  }
}

/// What an AMD-Vi unit wrote into its event log (chapter "Event Logging").
public struct AMDViEvent: Hashable, Sendable {
  /// 1: an invalid device table entry, 2: an access that the tables do not allow, 3 and 4: tables outside memory, 5: an
  /// invalid command, 6: commands outside memory.
  public var code: UInt8
  /// Of events 1...4.
  public var requester: RequesterID
  /// What it tried to reach; of events 5 and 6 where the command is.
  public var address: UInt64
  /// Of events 1...4.
  public var access: DMAAccess
  /// Of event 2: whether something is mapped there.
  public var isPresent: Bool

  /// As the unit recorded it.
  public init(code: UInt8, requester: RequesterID, address: UInt64, access: DMAAccess, isPresent: Bool) {
    self.code = code
    self.requester = requester
    self.address = address
    self.access = access
    self.isPresent = isPresent
  }
}

extension AMDViDriver {
  func startEventLog() {
    eventHead = 0
    registers.write(AMDViRegister.buffer(at: eventLog), at: AMDViRegister.eventLog, width: 8)
    registers.write(0, at: AMDViRegister.eventHead, width: 8)
    registers.write(0, at: AMDViRegister.eventTail, width: 8)
    registers.write(AMDViRegister.eventOverflow | AMDViRegister.eventPending, at: AMDViRegister.status, width: 8)
    control |= AMDViRegister.logsEvents
  }

  /// Has the unit interrupt when it has logged something, where its MSI capability says.
  public func enableEventInterrupt() throws(UnitError) { try setControl(control | AMDViRegister.eventInterrupt) }

  /// Takes the events out of the log, oldest first. Also returns whether others were lost for lack of room.
  public func takeEvents() throws(UnitError) -> (events: [AMDViEvent], hasLostSome: Bool) {
    let status = registers.read(at: AMDViRegister.status, width: 8)
    // Cleared before the log is read: an event that comes meanwhile interrupts anew.
    registers.write(AMDViRegister.eventPending, at: AMDViRegister.status, width: 8)
    let tail = registers.read(at: AMDViRegister.eventTail, width: 8) & 0xFF0
    var events: [AMDViEvent] = []
    while eventHead != tail {
      events.append(
        AMDViEvent(low: memory.load(eventLog + eventHead), high: memory.load(eventLog + eventHead + 8)))
      eventHead = (eventHead + 16) & 0xFF0
    }
    registers.write(eventHead, at: AMDViRegister.eventHead, width: 8)
    guard status & AMDViRegister.eventOverflow != 0 else { return (events, false) }
    // A log that ran over stands still until it was off.
    try setControl(control & ~AMDViRegister.logsEvents)
    startEventLog()
    try setControl(control)
    return (events, true)
  }
}
