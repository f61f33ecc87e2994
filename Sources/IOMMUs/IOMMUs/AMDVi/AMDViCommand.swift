internal import DMA
internal import IOMMUInterface

/// What a command asks for (AMD I/O Virtualization Technology specification, chapter "Commands"); the highest four
/// bits.
enum AMDViOpcode: UInt64 {
  case completionWait = 1
  case invalidateDeviceTableEntry = 2
  case invalidatePages = 3
  case invalidateDeviceIOTLB = 4
  case invalidateAll = 8
}

/// A command as it stands in the command buffer: two words.
struct AMDViCommand {
  let low: UInt64
  let high: UInt64

  /// Bytes of one.
  static var byteCount: UInt64 { 16 }
  /// Nil: a command that this unit does not serve.
  var opcode: AMDViOpcode? { AMDViOpcode(rawValue: low >> 60) }
  /// As an invalidation of an entry or a device-TLB: DeviceID.
  var requester: RequesterID { RequesterID(rawValue: UInt16(truncatingIfNeeded: low)) }
  /// As an invalidation of pages: DomainID.
  var domain: UInt16 { UInt16(truncatingIfNeeded: low >> 32) }
  /// As an invalidation of pages or a device-TLB: Address, with the S bit.
  var pages: PageRange { PageRange(ats: high) }
  /// As a wait: the word that says that it has ended, and where it is stored (s); nil for none.
  var completionStore: (data: UInt64, address: GuestAddress)? {
    low & 1 == 0 ? nil : (high, GuestAddress(low & 0x000F_FFFF_FFFF_FFF8))
  }
  /// As a wait: whether its end is an interrupt (i).
  var interrupts: Bool { low & 2 != 0 }
}
