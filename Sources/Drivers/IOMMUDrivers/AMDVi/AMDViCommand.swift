internal import IOMMUInterface

/// A command as the driver puts it into the command buffer (AMD I/O Virtualization Technology specification, chapter
/// "Commands").
struct AMDViCommand {
  private enum Opcode: UInt64 {
    case completionWait = 1
    case invalidateDeviceTableEntry = 2
    case invalidatePages = 3
    case invalidateDeviceIOTLB = 4
    case invalidateAll = 8
  }
  let low: UInt64
  let high: UInt64

  private init(_ opcode: Opcode, _ fields: UInt64 = 0, high: UInt64 = 0) {
    low = opcode.rawValue << 60 | fields
    self.high = high
  }

  /// A wait whose end the unit says by storing a word (s).
  static func completionWait(storing token: UInt64, at address: UInt64) -> Self {
    Self(.completionWait, address | 1, high: token)
  }

  /// A requester's entry of the device table.
  static func deviceTableEntry(of requester: RequesterID) -> Self {
    Self(.invalidateDeviceTableEntry, UInt64(requester.rawValue))
  }

  /// A domain's translations of a range.
  ///
  /// - Parameter keepsTables: nothing but pages changed. Otherwise what leads to tables is forgotten too (PDE).
  static func pages(of domain: UInt16, from first: UInt64, through last: UInt64, keepsTables: Bool) -> Self {
    Self(
      .invalidatePages, UInt64(domain) << 32, high: PageOrder.word(first, last) | (keepsTables ? 0 : 2))
  }

  /// What a requester itself keeps of a range: one request in flight at a time (Maxpend), on the queue (QueueID) of
  /// the requester's own number.
  static func deviceIOTLB(of requester: RequesterID, from first: UInt64, through last: UInt64) -> Self {
    let number = UInt64(requester.rawValue)
    return Self(.invalidateDeviceIOTLB, number << 32 | 1 << 24 | number, high: PageOrder.word(first, last))
  }

  /// Everything.
  static var invalidateAll: Self { Self(.invalidateAll) }
}
