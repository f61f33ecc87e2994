public import DMA
public import IOMMUInterface
internal import VirtioDrivers

extension AMDViDriver: InvalidatingUnit {
  func startCommands() throws(UnitError) {
    try setControl(control & ~AMDViRegister.takesCommands)
    commands.clear()
    // 2^8 commands of 16 bytes.
    registers.write(commands.start | 8 << 56, at: AMDViRegister.commandBuffer, width: 8)
    registers.write(0, at: AMDViRegister.commandHead, width: 8)
    registers.write(0, at: AMDViRegister.commandTail, width: 8)
    try setControl(control | AMDViRegister.takesCommands)
  }

  func post(_ low: UInt64, _ high: UInt64) {
    if commands.isFull, !complete() { commands.hasFailed = true }
    commands.put(low, high)
  }

  /// Units that remember that there was nothing say so in their PCI capability, which no unit here has.
  var remembersNothing: Bool { false }

  func postDomain(_ domain: UInt16) { postPages(of: domain, from: 0, through: .max, keepsTables: false) }

  func postPages(of domain: UInt16, from first: UInt64, through last: UInt64, keepsTables: Bool) {
    // Bit 1: what leads to tables too.
    post(3 << 60 | UInt64(domain) << 32, PageOrder.word(first, last) | (keepsTables ? 0 : 2))
  }

  func postKept(in domain: UInt16, from first: UInt64, through last: UInt64) {
    for requester in domainIDs.translationCachers(in: domain) { postKept(requester, from: first, through: last) }
  }

  /// The translations of a range that a requester caches itself.
  func postKept(_ requester: RequesterID, from first: UInt64, through last: UInt64) {
    let number = UInt64(requester.rawValue)
    // One request in flight at a time, on the queue of the requester's own number.
    post(4 << 60 | number << 32 | 1 << 24 | number, PageOrder.word(first, last))
  }

  /// As the protocol says; after a failure the buffer is started anew, without what was in it.
  func complete() -> Bool {
    guard !commands.isBroken else { return false }
    let token = commands.nextToken()
    commands.put(1 << 60 | commands.status | 1, token)
    registers.write(commands.tail, at: AMDViRegister.commandTail, width: 8)
    // Nothing comes from a buffer that stands still at an error.
    var isStanding = false
    let hasAnswer = try? wait.until {
      if commands.isDone { return true }
      isStanding = registers.read(at: AMDViRegister.status, width: 8) & AMDViRegister.commandsRun == 0
      return isStanding
    }
    let hadFailed = commands.settle()
    guard hasAnswer == true, !isStanding else {
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
    registers.write(eventLog | 8 << 56, at: AMDViRegister.eventLog, width: 8)
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
      let (low, high) = (memory.load(eventLog + eventHead), memory.load(eventLog + eventHead + 8))
      events.append(
        AMDViEvent(
          code: UInt8(low >> 60), requester: RequesterID(rawValue: UInt16(truncatingIfNeeded: low)), address: high,
          access: low >> 53 & 1 == 1 ? .write : .read, isPresent: low >> 52 & 1 == 1))
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
