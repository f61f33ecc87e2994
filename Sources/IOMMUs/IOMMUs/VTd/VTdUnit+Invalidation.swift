internal import DMA
import IOMMUInterface
import Synchronization

extension VTdUnit {
  /// What the context command register asks for; its upper half then says what was done.
  func contextCommand() {
    let command = state.withLock { $0.word(VTdRegister.contextCommand) }
    let granularity = command >> 61 & 3
    let invalidation = VTdContextInvalidation(
      granularity: granularity, domain: command, requester: command >> 16, functionMask: command >> 32)
    if let invalidation { invalidate(invalidation) }
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
    let invalidation = VTdIOTLBInvalidation(granularity: granularity, domain: command >> 32, pages: address)
    if let invalidation { invalidate(invalidation) }
    state.withLock { state in
      state[VTdRegister.invalidateIOTLB + 4] =
        (state[VTdRegister.invalidateIOTLB + 4] & 0x3003_FFFF) | UInt32(truncatingIfNeeded: granularity) << 25
    }
  }

  private func invalidate(_ contexts: VTdContextInvalidation) { forget { contexts.concerns($0, $1) } }

  private func invalidate(_ translations: VTdIOTLBInvalidation) {
    forget(isContext: false, in: translations.pages) { _, context in translations.concerns(context) }
  }

  private func invalidate(deviceIOTLBOf requester: RequesterID, _ pages: PageRange) {
    forget(isContext: false, in: pages) { one, context in one == requester && context?.hasDeviceIOTLB == true }
  }

  /// Works the invalidation queue off, from where it stood to where the driver says it ends.
  func runQueue() {
    // No more than a queue holds: the driver cannot keep us here.
    for _ in 0..<32768 {
      let next: (queue: UInt64, head: UInt32, tail: UInt32)? = state.withLock { state in
        guard state.status.contains(.queuedInvalidation),
          state[VTdRegister.faultStatus] & VTdFaultStatus.queueError.rawValue == 0,
          state[VTdRegister.queueHead] != state[VTdRegister.queueTail]
        else { return nil }
        return (state.word(VTdRegister.queueAddress), state[VTdRegister.queueHead], state[VTdRegister.queueTail])
      }
      guard let (queue, head, tail) = next else { return }
      let bytes: UInt32 = 4096 << UInt32(queue & 7)
      guard tail < bytes, let descriptor = descriptor(at: (queue & ~0xFFF) &+ UInt64(head)), perform(descriptor) else {
        state.withLock { $0[VTdRegister.faultStatus] |= VTdFaultStatus.queueError.rawValue }
        raise(event: VTdRegister.faultEvent)
        return
      }
      let after = head + VTdDescriptor.byteCount
      state.withLock { $0[VTdRegister.queueHead] = after < bytes ? after : 0 }
    }
  }

  private func descriptor(at address: UInt64) -> VTdDescriptor? {
    guard let low = memory.tableWord(at: address), let high = memory.tableWord(at: address &+ 8) else { return nil }
    return VTdDescriptor(low: low, high: high)
  }

  /// False for a descriptor that is none.
  private func perform(_ descriptor: VTdDescriptor) -> Bool {
    switch descriptor.type {
    case .contextCache:
      guard let invalidation = descriptor.contextInvalidation else { return false }
      invalidate(invalidation)
    case .iotlb:
      guard let invalidation = descriptor.iotlbInvalidation else { return false }
      invalidate(invalidation)
    case .deviceIOTLB:
      guard options.hasDeviceIOTLB else { return false }
      let (requester, pages) = descriptor.deviceIOTLBInvalidation
      invalidate(deviceIOTLBOf: requester, pages)
    case .wait: return endWait(descriptor)
    case nil: return false
    }
    return true
  }

  /// Everything before a wait is done: descriptors are worked off one by one, each to its end.
  private func endWait(_ descriptor: VTdDescriptor) -> Bool {
    if let (data, address) = descriptor.statusWrite {
      let status = [0, 8, 16, 24].map { UInt8(truncatingIfNeeded: data >> $0) }
      guard memory.copy(status.span, to: address) == 4 else { return false }
    }
    if descriptor.interrupts {
      state.withLock { $0[VTdRegister.completionStatus] |= 1 }
      raise(event: VTdRegister.completionEvent)
    }
    return true
  }
}
