public import DMA
public import IOMMUInterface

/// An access that a VT-d unit refused.
public struct VTdFault: Hashable, Sendable {
  public var requester: RequesterID
  /// The page of device addresses.
  public var page: DMAAddress
  public var access: DMAAccess
  /// The unit's reason (chapter "Fault Reason Encodings").
  public var reason: UInt8

  /// As the unit recorded it.
  public init(requester: RequesterID, page: DMAAddress, access: DMAAccess, reason: UInt8) {
    self.requester = requester
    self.page = page
    self.access = access
    self.reason = reason
  }

  /// From a fault recording register; nil when nothing is recorded in it (F).
  init?(low: UInt64, high: UInt64) {
    guard high >> 63 == 1 else { return nil }
    self.init(
      requester: RequesterID(rawValue: UInt16(truncatingIfNeeded: high)), page: DMAAddress(low & ~4095),
      access: high >> 62 & 1 == 1 ? .read : .write, reason: UInt8(truncatingIfNeeded: high >> 32))
  }
}

extension VTdDriver {
  /// Has the unit send a message when it has recorded a fault and the records were empty.
  public func setFaultMessage(_ message: InterruptMessage) {
    registers.write(UInt64(message.data), at: VTdRegister.faultEventData, width: 4)
    registers.write(message.address, at: VTdRegister.faultEventAddress, width: 8)
    registers.write(0, at: VTdRegister.faultEventControl, width: 4)
  }

  /// Takes the faults out of the unit's records, oldest first. Also returns whether others were lost for lack of room.
  public func takeFaults() -> (faults: [VTdFault], hasLostSome: Bool) {
    let status = registers.read(at: VTdRegister.faultStatus, width: 4)
    var faults: [VTdFault] = []
    if status & 2 != 0 {
      let count = capabilities.faultRecords
      var index = Int(status >> 8 & 255) % count
      // A device that goes on faulting does not keep us here.
      for _ in 0..<count {
        let at = capabilities.faultRecordOffset + 16 * index
        // The half that says whether there is one first.
        let high = registers.read(at: at + 8, width: 8)
        guard let fault = VTdFault(low: registers.read(at: at, width: 8), high: high) else { break }
        faults.append(fault)
        registers.write(1 << 31, at: at + 12, width: 4)
        index = (index + 1) % count
      }
    }
    if status & 1 != 0 { registers.write(1, at: VTdRegister.faultStatus, width: 4) }
    return (faults, status & 1 != 0)
  }
}
