internal import DriverDMA

extension VTdDriver: InvalidatingUnit {
  func startQueue() throws(UnitError) {
    queue.clear()
    // While it is off: a queue that is on would go on with what it stands at.
    registers.write(0x70, at: VTdRegister.faultStatus, width: 4)
    registers.write(0, at: VTdRegister.queueTail, width: 8)
    registers.write(queue.start, at: VTdRegister.queueAddress, width: 8)
    try command(VTdRegister.queuedInvalidation, on: true)
  }

  func post(_ descriptor: VTdDescriptor) {
    if queue.isFull, !complete() { queue.hasFailed = true }
    queue.put(descriptor.low, descriptor.high)
  }

  var remembersNothing: Bool { capabilities.hasCachingMode }

  func postDomain(_ domain: UInt16) { post(.translations(of: domain, drains: capabilities.drains)) }

  func postPages(of domain: UInt16, from first: UInt64, through last: UInt64, keepsTables: Bool) {
    let order = PageOrder.around(first, last)
    guard capabilities.hasPageInvalidation, order <= capabilities.largestRange else { return postDomain(domain) }
    post(.pages(of: domain, around: first, order: order, keepsTables: keepsTables, drains: capabilities.drains))
  }

  func postKept(in domain: UInt16, from first: UInt64, through last: UInt64) {
    for requester in domainIDs.translationCachers(in: domain) {
      post(.deviceIOTLB(of: requester, first: first, last: last))
    }
  }

  /// As the protocol says; after a failure the queue is started anew, without what was in it.
  func complete() -> Bool {
    guard !queue.isBroken else { return false }
    let token = queue.nextToken()
    let end = VTdDescriptor.wait(storing: token, at: queue.status)
    queue.put(end.low, end.high)
    registers.write(queue.tail, at: VTdRegister.queueTail, width: 8)
    // Nothing comes from a queue that stands still at an error.
    var isStanding = false
    let hasAnswer = wait.until {
      if queue.isDone { return true }
      isStanding = registers.read(at: VTdRegister.faultStatus, width: 4) & 0x70 != 0
      return isStanding
    }
    let hadFailed = queue.settle()
    guard hasAnswer, !isStanding else {
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
