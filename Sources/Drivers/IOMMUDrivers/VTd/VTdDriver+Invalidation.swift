import IOMMUInterface
internal import VirtioDrivers

extension VTdDriver: InvalidatingUnit {
  func startQueue() throws(UnitError) {
    queue.clear()
    // While it is off: a queue that is on would go on with what it stands at.
    registers.write(0x70, at: VTdRegister.faultStatus, width: 4)
    registers.write(0, at: VTdRegister.queueTail, width: 8)
    registers.write(queue.start, at: VTdRegister.queueAddress, width: 8)
    try command(VTdRegister.queuedInvalidation, on: true)
  }

  private func post(_ low: UInt64, _ high: UInt64) {
    if queue.isFull, !complete() { queue.hasFailed = true }
    queue.put(low, high)
  }

  var remembersNothing: Bool { capabilities.hasCachingMode }

  /// Context entries; granularity 1: all, 2: a domain's, 3: a requester's.
  func postContext(_ granularity: UInt64, domain: UInt16, requester: RequesterID) {
    post(1 | granularity << 4 | UInt64(domain) << 16 | UInt64(requester.rawValue) << 32, 0)
  }

  /// Translations; granularity 1: all, 2: a domain's.
  func postIOTLB(_ granularity: UInt64, domain: UInt16) {
    post(2 | granularity << 4 | capabilities.drains | UInt64(domain) << 16, 0)
  }

  func postDomain(_ domain: UInt16) { postIOTLB(2, domain: domain) }

  func postPages(of domain: UInt16, from first: UInt64, through last: UInt64, keepsTables: Bool) {
    let order = PageOrder.around(first, last)
    guard capabilities.hasPageInvalidation, order <= capabilities.largestRange else { return postDomain(domain) }
    let start = first & ~((4096 << order) &- 1)
    post(2 | 3 << 4 | capabilities.drains | UInt64(domain) << 16, start | (keepsTables ? 1 << 6 : 0) | order)
  }

  func postKept(in domain: UInt16, from first: UInt64, through last: UInt64) {
    for requester in domainIDs.translationCachers(in: domain) { postDeviceIOTLB(requester, first: first, last: last) }
  }

  /// The translations of a range that a requester caches itself.
  func postDeviceIOTLB(_ requester: RequesterID, first: UInt64, last: UInt64) {
    post(3 | UInt64(requester.rawValue) << 32, PageOrder.word(first, last))
  }

  /// As the protocol says; after a failure the queue is started anew, without what was in it.
  func complete() -> Bool {
    guard !queue.isBroken else { return false }
    let token = queue.nextToken()
    queue.put(5 | 1 << 5 | 1 << 6 | token << 32, queue.status)
    registers.write(queue.tail, at: VTdRegister.queueTail, width: 8)
    // Nothing comes from a queue that stands still at an error.
    var isStanding = false
    let hasAnswer = try? wait.until {
      if queue.isDone { return true }
      isStanding = registers.read(at: VTdRegister.faultStatus, width: 4) & 0x70 != 0
      return isStanding
    }
    let hadFailed = queue.settle()
    guard hasAnswer == true, !isStanding else {
      restartQueue()
      return false
    }
    return !hadFailed
  }

  private func restartQueue() {
    do throws(UnitError) {
      try command(VTdRegister.queuedInvalidation, on: false)
      try startQueue()
    } catch {
      queue.isBroken = true
    }
  }
}
