import DMA
import IOMMUInterface
import Synchronization

extension VTdUnit {
  /// Which endpoints a context-cache invalidation means.
  private func contexts(
    _ granularity: UInt64, domain: UInt16, source: UInt16, mask: UInt64
  ) -> ((RequesterID, VTdContext?) -> Bool)? {
    switch granularity {
    case 1: return { _, _ in true }
    case 2: return { _, context in context?.domain == domain }
    case 3:
      // The mask leaves out function bits from the top: 2, then 1, then 0.
      let ignored: UInt16 = [0, 4, 6, 7][Int(mask & 3)]
      return { requester, _ in requester.rawValue & ~ignored == source & ~ignored }
    default: return nil
    }
  }

  /// What the context command register asks for; its upper half then has the result.
  func contextCommand() {
    let command = state.withLock { $0.word(VTdRegister.contextCommand) }
    let granularity = command >> 61 & 3
    if let concerned = contexts(
      granularity, domain: UInt16(truncatingIfNeeded: command), source: UInt16(truncatingIfNeeded: command >> 16),
      mask: command >> 32)
    {
      forget(concerned)
    }
    state.withLock { state in
      state[VTdRegister.contextCommand + 4] =
        UInt32(truncatingIfNeeded: granularity) << 27 | UInt32(truncatingIfNeeded: granularity) << 29
    }
  }

  /// What the IOTLB registers ask for.
  func iotlbCommand() {
    let (command, address) = state.withLock {
      ($0.word(VTdRegister.invalidateIOTLB), $0.word(VTdRegister.invalidateAddress))
    }
    let granularity = command >> 60 & 3
    invalidateIOTLB(
      granularity, domain: UInt16(truncatingIfNeeded: command >> 32), address: address & ~0xFFF, order: address & 63)
    state.withLock { state in
      state[VTdRegister.invalidateIOTLB + 4] =
        (state[VTdRegister.invalidateIOTLB + 4] & 0x3003_FFFF) | UInt32(truncatingIfNeeded: granularity) << 25
    }
  }

  private func invalidateIOTLB(_ granularity: UInt64, domain: UInt16, address: UInt64, order: UInt64) {
    // Translations that a device caches itself are dropped only by its own invalidation.
    func isConcerned(_ context: VTdContext?) -> Bool { context?.domain == domain && context?.hasDeviceIOTLB == false }
    switch granularity {
    case 1: forget(isContext: false) { _, context in context?.hasDeviceIOTLB != true }
    case 2: forget(isContext: false) { _, context in isConcerned(context) }
    case 3:
      let (first, last) = pages(address, order)
      forget(isContext: false, { _, context in isConcerned(context) }, first: first, last: last)
    default: break
    }
  }

  /// 2^order pages around an address.
  private func pages(_ address: UInt64, _ order: UInt64) -> (UInt64, UInt64) {
    guard order < 52 else { return (0, .max) }
    let size: UInt64 = 4096 << order
    return (address & ~(size - 1), address | (size - 1))
  }

  /// Works the invalidation queue off, from where it stood to where the driver says it ends.
  func runQueue() {
    // No more than a queue holds: the driver cannot keep us here.
    for _ in 0..<32768 {
      let next: (UInt64, UInt32)? = state.withLock { state in
        guard state.status.contains(.queuedInvalidation),
          state[VTdRegister.faultStatus] & VTdFaultStatus.queueError.rawValue == 0,
          state[VTdRegister.queueHead] != state[VTdRegister.queueTail]
        else { return nil }
        return (state.word(VTdRegister.queueAddress), state[VTdRegister.queueHead])
      }
      guard let (queue, head) = next else { return }
      let bytes: UInt32 = 4096 << UInt32(queue & 7)
      let tail = state.withLock { $0[VTdRegister.queueTail] }
      guard tail < bytes, let low = memory.tableWord(at: (queue & ~0xFFF) &+ UInt64(head)),
        let high = memory.tableWord(at: (queue & ~0xFFF) &+ UInt64(head) &+ 8), perform(low, high)
      else {
        state.withLock { $0[VTdRegister.faultStatus] |= VTdFaultStatus.queueError.rawValue }
        raise(event: VTdRegister.faultEvent)
        return
      }
      state.withLock { $0[VTdRegister.queueHead] = head + 16 < bytes ? head + 16 : 0 }
    }
  }

  /// One descriptor of the queue; false for an invalid one.
  private func perform(_ low: UInt64, _ high: UInt64) -> Bool {
    switch low & 15 {
    case 1:
      guard
        let concerned = contexts(
          low >> 4 & 3, domain: UInt16(truncatingIfNeeded: low >> 16), source: UInt16(truncatingIfNeeded: low >> 32),
          mask: low >> 48)
      else { return false }
      forget(concerned)
    case 2:
      guard low >> 4 & 3 != 0 else { return false }
      invalidateIOTLB(
        low >> 4 & 3, domain: UInt16(truncatingIfNeeded: low >> 16), address: high & ~0xFFF, order: high & 63)
    case 3:
      guard options.hasDeviceIOTLB else { return false }
      let requester = RequesterID(rawValue: UInt16(truncatingIfNeeded: low >> 32))
      // With the S bit the lowest clear bit of the address says how many pages.
      let order = high & 1 == 0 ? 0 : UInt64((~(high >> 12)).trailingZeroBitCount) + 1
      let (first, last) = pages(high & ~0xFFF, order)
      forget(
        isContext: false, { one, context in one == requester && context?.hasDeviceIOTLB == true }, first: first,
        last: last)
    case 5:
      // Everything before it is done: descriptors are worked off one by one, each to its end.
      if low & 1 << 5 != 0 {
        let status = [0, 8, 16, 24].map { UInt8(truncatingIfNeeded: low >> (32 + $0)) }
        guard memory.copy(status.span, to: GuestAddress(high & ~3)) == 4 else { return false }
      }
      if low & 1 << 4 != 0 {
        state.withLock { $0[VTdRegister.completionStatus] |= 1 }
        raise(event: VTdRegister.completionEvent)
      }
    default: return false
    }
    return true
  }
}
