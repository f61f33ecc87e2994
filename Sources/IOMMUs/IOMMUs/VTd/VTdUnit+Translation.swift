public import DMA
public import IOMMUInterface
import Synchronization

extension VTdUnit: AddressTranslation {
  public func lookUp(
    _ address: DMAAddress, for access: DMAAccess, by requester: RequesterID
  ) throws(DMAFault) -> GuestRun {
    try rethrowing(
      look(address, access, requester),
      as: { (refusal: VTdRefusal) in
        DMAFault(address: address, access: access, reason: refusal.isPermission ? .permission : .unmapped)
      })
  }

  private func look(_ address: DMAAddress, _ access: DMAAccess, _ requester: RequesterID) throws(VTdRefusal) -> GuestRun
  {
    let found: Result<GuestRun, VTdRefusal> = state.withLock { state in
      guard state.status.contains(.translation) else { return .success(.identity) }
      do throws(VTdRefusal) {
        let context: VTdContext
        if let known = state.requesters.context(of: requester) {
          context = known
        } else {
          context = try walk.context(of: requester, rootTable: state.rootTable)
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
    var reason: VTdFaultReason = fault.access == .write ? .writeForbidden : .readForbidden
    do throws(VTdRefusal) {
      _ = try look(fault.address, fault.access, requester)
    } catch {
      if error.hidesFault { return }
      reason = error.reason
    }
    let isFirst: Bool = state.withLock { state in
      // Without the index of a record that is among these bits: it stays when all of them are cleared.
      let pending = VTdFaultStatus(rawValue: state[VTdRegister.faultStatus]).intersection(
        VTdFaultStatus.clearable.union(.pending))
      let at = VTdRegister.faultRecord + 16 * state.nextRecord
      guard state[at + 12] & 1 << 31 == 0 else {
        // No room: the driver learns that there were more, not which (R093).
        state[VTdRegister.faultStatus] |= VTdFaultStatus.overflow.rawValue
        return pending.isEmpty
      }
      let page = fault.address.rawValue & ~0xFFF
      state[at] = UInt32(truncatingIfNeeded: page)
      state[at + 4] = UInt32(truncatingIfNeeded: page >> 32)
      state[at + 8] = UInt32(requester.rawValue)
      state[at + 12] = 1 << 31 | (fault.access == .read ? 1 << 30 : 0) | UInt32(reason.rawValue)
      if !pending.contains(.pending) {
        // The index of the first record that waits.
        state[VTdRegister.faultStatus] &= ~0xFF00
        state[VTdRegister.faultStatus] |= VTdFaultStatus.pending.rawValue | UInt32(state.nextRecord) << 8
      }
      state.nextRecord = (state.nextRecord + 1) % options.faultRecords
      return pending.isEmpty
    }
    // One interrupt until the driver has cleared everything.
    if isFirst { raise(event: VTdRegister.faultEvent) }
  }

  /// The driver has read a fault record.
  func clearRecord(at offset: Int) {
    state.withLock { state in
      state[offset] &= ~(1 << 31)
      let waits = (0..<options.faultRecords).contains { state[VTdRegister.faultRecord + 16 * $0 + 12] & 1 << 31 != 0 }
      if !waits { state[VTdRegister.faultStatus] &= ~VTdFaultStatus.pending.rawValue }
    }
  }

  /// The driver has seen these bits of the fault status register. A queue that stood still at an error goes on.
  func clearFaults(_ bits: VTdFaultStatus) {
    let goesOn = state.withLock { state in
      let stood = state[VTdRegister.faultStatus] & VTdFaultStatus.queueError.rawValue != 0
      state[VTdRegister.faultStatus] &= ~bits.intersection(.clearable).rawValue
      return stood && bits.contains(.queueError)
    }
    if goesOn { runQueue() }
  }
}
