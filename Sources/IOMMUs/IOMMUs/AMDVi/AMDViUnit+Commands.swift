public import DMA
public import IOMMUInterface
import Synchronization

extension AMDViUnit {
  /// Works the command buffer off, from where it stood to where the driver says it ends.
  func runCommands() {
    // No more than a buffer holds: the driver cannot keep us here.
    for _ in 0..<32768 {
      let next: (buffer: AMDViBufferBase, head: UInt64, tail: UInt64)? = state.withLock { state in
        let (head, tail) = (
          state.registers[AMDViRegister.commandHead] ?? 0, state.registers[AMDViRegister.commandTail] ?? 0
        )
        guard state.control.contains(.commandBuffer), state.status.contains(.commandsRun), head != tail else {
          return nil
        }
        return (AMDViBufferBase(word: state.registers[AMDViRegister.commandBuffer] ?? 0), head, tail)
      }
      guard let (buffer, head, tail) = next else { return }
      let at = buffer.address + head
      guard let bytes = buffer.byteCount, head < bytes, tail < bytes, let low = memory.tableWord(at: at),
        let high = memory.tableWord(at: at + 8)
      else { return stop(.commandsUnreachable, at) }
      guard perform(AMDViCommand(low: low, high: high)) else { return stop(.illegalCommand, at) }
      state.withLock { $0.registers[AMDViRegister.commandHead] = (head + AMDViCommand.byteCount) % bytes }
    }
  }

  /// Stands still at a command until the driver has turned the buffer off and on.
  private func stop(_ event: AMDViEvent, _ address: UInt64) {
    _ = state.withLock { $0.status.remove(.commandsRun) }
    log(event.bits, address)
  }

  /// False for a command that is none.
  private func perform(_ command: AMDViCommand) -> Bool {
    switch command.opcode {
    case .completionWait: return endWait(command)
    case .invalidateDeviceTableEntry: forget { requester, _ in requester == command.requester }
    case .invalidatePages:
      // What a device keeps itself it forgets only when it is told so.
      forget(isContext: false, in: command.pages) { _, context in
        context?.domain == command.domain && context?.hasDeviceIOTLB == false
      }
    case .invalidateDeviceIOTLB:
      forget(isContext: false, in: command.pages) { requester, context in
        requester == command.requester && context?.hasDeviceIOTLB == true
      }
    case .invalidateAll: forget { _, context in context?.hasDeviceIOTLB != true }
    case nil: return false
    }
    return true
  }

  /// Everything before a wait is done: commands are worked off one by one, each to its end.
  private func endWait(_ command: AMDViCommand) -> Bool {
    if let (data, address) = command.completionStore {
      guard let cell = memory.cells(at: address, byteCount: 8) else { return false }
      cell.storeRelease64(data.littleEndian, at: 0)
    }
    if command.interrupts { raise(.completionInterrupt, if: .completionInterrupt) }
    return true
  }

  /// Writes an event into the log, or notes that there was no room (R093).
  func log(_ low: UInt64, _ high: UInt64) {
    let isTold = state.withLock { state in
      guard state.control.contains(.eventLog), state.status.contains(.eventLogRuns) else { return false }
      let buffer = AMDViBufferBase(word: state.registers[AMDViRegister.eventLog] ?? 0)
      let tail = state.registers[AMDViRegister.eventTail] ?? 0
      guard let bytes = buffer.byteCount, tail < bytes,
        (tail + 16) % bytes != state.registers[AMDViRegister.eventHead] ?? 0,
        let cells = memory.cells(at: GuestAddress(buffer.address + tail), byteCount: 16)
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
