public import DMA
public import IOMMUInterface
import Synchronization

extension AMDViUnit {
  /// Bytes of a buffer of 16-byte entries, by the register that says where it is; nil for an invalid length.
  private static func byteCount(_ base: UInt64) -> UInt64? {
    let order = base >> 56
    return (8...15).contains(order) ? 16 << order : nil
  }

  /// Works the command buffer off, from where it stood to where the driver says it ends.
  func runCommands() {
    // No more than a buffer holds: the driver cannot keep us here.
    for _ in 0..<32768 {
      let next: (base: UInt64, head: UInt64, tail: UInt64)? = state.withLock { state in
        let (head, tail) = (
          state.registers[AMDViRegister.commandHead] ?? 0, state.registers[AMDViRegister.commandTail] ?? 0
        )
        guard state.control.contains(.commandBuffer), state.status.contains(.commandsRun), head != tail else {
          return nil
        }
        return (state.registers[AMDViRegister.commandBuffer] ?? 0, head, tail)
      }
      guard let (base, head, tail) = next else { return }
      let at = (base & 0x000F_FFFF_FFFF_F000) + head
      guard let bytes = Self.byteCount(base), head < bytes, tail < bytes, let low = memory.tableWord(at: at),
        let high = memory.tableWord(at: at + 8)
      else { return stop(.commandsUnreachable, at) }
      guard perform(low, high) else { return stop(.illegalCommand, at) }
      state.withLock { $0.registers[AMDViRegister.commandHead] = (head + 16) % bytes }
    }
  }

  /// Stands still at a command until the driver has turned the buffer off and on.
  private func stop(_ event: AMDViEvent, _ address: UInt64) {
    _ = state.withLock { $0.status.remove(.commandsRun) }
    log(event.bits, address)
  }

  /// One command; false for an invalid one.
  private func perform(_ low: UInt64, _ high: UInt64) -> Bool {
    switch low >> 60 {
    case 1:
      // Everything before it is done: commands are worked off one by one, each to its end.
      if low & 1 != 0 {
        guard let cell = memory.cells(at: GuestAddress(low & 0x000F_FFFF_FFFF_FFF8), byteCount: 8) else { return false }
        cell.storeRelease64(high.littleEndian, at: 0)
      }
      if low & 2 != 0 { raise(.completionInterrupt, if: .completionInterrupt) }
    case 2: forget { requester, _ in requester.rawValue == UInt16(truncatingIfNeeded: low) }
    case 3:
      let domain = UInt16(truncatingIfNeeded: low >> 32)
      let (first, last) = Self.pages(high)
      // Translations that a device caches itself are dropped only by its own invalidation.
      forget(
        isContext: false, { _, context in context?.domain == domain && context?.hasDeviceIOTLB == false }, first: first,
        last: last)
    case 4:
      let (first, last) = Self.pages(high)
      forget(
        isContext: false, { $0.rawValue == UInt16(truncatingIfNeeded: low) && $1?.hasDeviceIOTLB == true },
        first: first, last: last)
    case 8: forget { _, context in context?.hasDeviceIOTLB != true }
    default: return false
    }
    return true
  }

  /// What an invalidation names: a page or, with the S bit, as many as the lowest clear bit of the address says.
  private static func pages(_ word: UInt64) -> (UInt64, UInt64) {
    let order = word & 1 == 0 ? 0 : UInt64((~(word >> 12)).trailingZeroBitCount) + 1
    guard order < 52 else { return (0, .max) }
    let size: UInt64 = 4096 << order
    return (word & ~0xFFF & ~(size - 1), word & ~0xFFF | (size - 1))
  }

  /// Writes an event into the log, or notes that there was no room (R093).
  func log(_ low: UInt64, _ high: UInt64) {
    let isTold = state.withLock { state in
      guard state.control.contains(.eventLog), state.status.contains(.eventLogRuns) else { return false }
      let base = state.registers[AMDViRegister.eventLog] ?? 0
      let tail = state.registers[AMDViRegister.eventTail] ?? 0
      guard let bytes = Self.byteCount(base), tail < bytes,
        (tail + 16) % bytes != state.registers[AMDViRegister.eventHead] ?? 0,
        let cells = memory.cells(at: GuestAddress((base & 0x000F_FFFF_FFFF_F000) + tail), byteCount: 16)
      else {
        state.status.remove(.eventLogRuns)
        state.status.insert(.eventOverflow)
        return true
      }
      cells.store64(high.littleEndian, at: 8)
      cells.storeRelease64(low.littleEndian, at: 0)
      state.registers[AMDViRegister.eventTail] = (tail + 16) % bytes
      return true
    }
    if isTold { raise(.eventInterrupt, if: .eventInterrupt) }
  }
}

extension AMDViUnit: AddressTranslation {
  public func lookUp(
    _ address: DMAAddress, for access: DMAAccess, by requester: RequesterID
  ) throws(DMAFault) -> GuestRun {
    do throws(AMDViRefusal) {
      return try look(address, access, requester)
    } catch {
      if case .pageFault(_, isForbidden: true, _) = error.event {
        throw DMAFault(address: address, access: access, reason: .permission)
      }
      throw DMAFault(address: address, access: access, reason: .unmapped)
    }
  }

  private func look(
    _ address: DMAAddress, _ access: DMAAccess, _ requester: RequesterID
  ) throws(AMDViRefusal) -> GuestRun {
    let found: Result<GuestRun, AMDViRefusal> = state.withLock { state in
      guard state.control.contains(.enabled) else { return .success(.identity) }
      do throws(AMDViRefusal) {
        let context: AMDViContext
        if let known = state.requesters.context(of: requester) {
          context = known
        } else {
          context = try walk.context(of: requester, deviceTable: state.registers[AMDViRegister.deviceTable] ?? 0)
          state.requesters.remember(context, of: requester)
        }
        return .success(try walk.run(context, around: address.rawValue, for: access))
      } catch { return .failure(error) }
    }
    return try found.get()
  }

  public func report(_ fault: DMAFault, by requester: RequesterID) {
    // The tables are asked once more for the reason in the unit's own words. If they have changed meanwhile, it is the
    // plain one.
    var refusal = AMDViRefusal(event: .pageFault(isPresent: false, isForbidden: false, isReserved: false))
    do throws(AMDViRefusal) {
      _ = try look(fault.address, fault.access, requester)
    } catch {
      if error.hidesFault { return }
      refusal = error
    }
    log(
      refusal.event.bits | (fault.access == .write ? 1 << 53 : 0) | UInt64(refusal.domain) << 32
        | UInt64(requester.rawValue),
      fault.address.rawValue)
  }
}
