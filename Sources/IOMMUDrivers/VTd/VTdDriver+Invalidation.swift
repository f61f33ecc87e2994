import DMA
import VirtioDrivers

/// The invalidation queue in memory, and the word into which the unit writes how far it is.
struct VTdQueue {
  /// Descriptors that fit: a page of them.
  static var capacity: UInt64 { 256 }
  let ring: UInt64
  let status: UInt64
  /// Where the next descriptor goes.
  var tail: UInt64 = 0
  /// Posted and not waited for.
  var pending: UInt64 = 0
  /// The last number that the unit was asked to write.
  var token: UInt32 = 0
  /// Something posted before did not happen, and nobody has been told.
  var hasFailed = false
  /// The unit does not even start the queue anew.
  var isBroken = false

  init(in memory: TableMemory) throws(DMAError) {
    ring = try memory.allocate()
    status = try memory.allocate()
  }
}

extension VTdDriver {
  func startQueue() throws(UnitError) {
    queue.tail = 0
    queue.pending = 0
    // While it is off: a queue that is on would go on with what it stands at.
    registers.write(0x70, at: VTdRegister.faultStatus, width: 4)
    registers.write(0, at: VTdRegister.queueTail, width: 8)
    registers.write(queue.ring, at: VTdRegister.queueAddress, width: 8)
    try command(VTdRegister.queuedInvalidation, on: true)
  }

  private func post(_ low: UInt64, _ high: UInt64) {
    // Two places stay free: one for the wait, one that tells a full queue from an empty one.
    if queue.pending >= VTdQueue.capacity - 2, !complete() { queue.hasFailed = true }
    put(low, high)
  }

  private func put(_ low: UInt64, _ high: UInt64) {
    memory.store(high, at: queue.ring + queue.tail * 16 + 8)
    memory.store(low, at: queue.ring + queue.tail * 16)
    queue.tail = (queue.tail + 1) % VTdQueue.capacity
    queue.pending += 1
  }

  /// Context entries; granularity 1: all, 2: a domain's, 3: a requester's.
  func postContext(_ granularity: UInt64, domain: UInt16, requester: RequesterID) {
    post(1 | granularity << 4 | UInt64(domain) << 16 | UInt64(requester.rawValue) << 32, 0)
  }

  /// Translations; granularity 1: all, 2: a domain's.
  func postIOTLB(_ granularity: UInt64, domain: UInt16) {
    post(2 | granularity << 4 | capabilities.drains | UInt64(domain) << 16, 0)
  }

  /// Translations of a range in a domain, or all of them where the unit cannot name the range.
  ///
  /// - Parameter keepsTables: nothing but pages changed.
  func postIOTLB(domain: UInt16, first: UInt64, last: UInt64, keepsTables: Bool) {
    let order = WaitingRanges.order(first, last)
    guard capabilities.hasPageInvalidation, order <= capabilities.largestRange else { return postIOTLB(2, domain: domain) }
    let start = first & ~((4096 << UInt64(order)) &- 1)
    post(2 | 3 << 4 | capabilities.drains | UInt64(domain) << 16, start | (keepsTables ? 1 << 6 : 0) | UInt64(order))
  }

  /// What a requester itself keeps of a range.
  func postDeviceIOTLB(_ requester: RequesterID, first: UInt64, last: UInt64) {
    let order = UInt64(WaitingRanges.order(first, last))
    // The lowest clear bit of the address says how many pages; the highest bit is clear for all there are.
    let address: UInt64
    switch order {
    case 0: address = first & ~4095
    case 52...: address = 0x7FFF_FFFF_FFFF_F000 | 1
    default:
      let start = first & ~(4096 << order - 1)
      address = start | (4096 << (order - 1) - 4096) | 1
    }
    post(3 | UInt64(requester.rawValue) << 32, address)
  }

  /// Has the unit do what was posted, and waits until it says that it has. False: it did not, or not in time; the queue is then
  /// started anew, without what was in it.
  func complete() -> Bool {
    guard !queue.isBroken else { return false }
    queue.token &+= 1
    let token = queue.token
    put(5 | 1 << 5 | 1 << 6 | UInt64(token) << 32, queue.status)
    registers.write(queue.tail * 16, at: VTdRegister.queueTail, width: 8)
    // Nothing comes from a queue that stands still at an error.
    var isStanding = false
    let isDone = try? wait.until {
      if UInt32(truncatingIfNeeded: memory.load(queue.status)) == token { return true }
      isStanding = registers.read(at: VTdRegister.faultStatus, width: 4) & 0x70 != 0
      return isStanding
    }
    queue.pending = 0
    let hadFailed = queue.hasFailed
    queue.hasFailed = false
    guard isDone == true, !isStanding else {
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
