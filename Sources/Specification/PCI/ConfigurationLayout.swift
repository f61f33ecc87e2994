/// The layout of a function's configuration space: identity, BARs, capabilities. Mistakes here are the author's, and
/// trap.
public struct ConfigurationLayout: Sendable {
  /// Bytes a function without extended configuration space has.
  public static var byteCount: Int { 256 }

  var bytes = [UInt8](repeating: 0, count: byteCount)
  /// The bits that software may write.
  var writable = [UInt8](repeating: 0, count: byteCount)
  /// The base address registers, by number.
  public private(set) var bars: [BAR] = []
  /// Whether it is a bridge's (header type 1).
  public let isBridge: Bool
  var msixAt: Int?
  /// Where the PCI Express capability is, and whether it has a function level reset.
  var express: (at: Int, resets: Bool)?
  var nextExtended = firstExtendedCapability
  var lastExtended: Int?
  private var next = PCIRegister.firstCapability
  private var last: Int?

  /// A type 0 header: a function that is no bridge.
  public init(_ identity: PCIIdentity, pin: PCIInterruptPin? = nil) {
    self.init(identity, bridge: false, pin: pin)
    put(UInt64(identity.subsystemVendorID), at: PCIRegister.subsystemVendorID, width: 2)
    put(UInt64(identity.subsystemID), at: PCIRegister.subsystemID, width: 2)
  }

  /// A type 1 header: a bridge with windows for 32-bit I/O, memory, and 64-bit prefetchable memory.
  public init(bridge identity: PCIIdentity) {
    self.init(identity, bridge: true, pin: nil)
    for at in [PCIRegister.primaryBus, PCIRegister.secondaryBus, PCIRegister.subordinateBus, 0x1b] {
      writable[at] = 0xff
    }
    for at in [PCIRegister.ioBase, PCIRegister.ioLimit] {
      bytes[at] = 1
      writable[at] = 0xf0
    }
    for at in [PCIRegister.memoryBase, PCIRegister.memoryLimit] { put(0xfff0, at: at, width: 2, into: \.writable) }
    for at in [PCIRegister.prefetchableBase, PCIRegister.prefetchableLimit] {
      bytes[at] = 1
      put(0xfff0, at: at, width: 2, into: \.writable)
    }
    for at in [PCIRegister.prefetchableBaseUpper, PCIRegister.prefetchableLimitUpper, PCIRegister.ioBaseUpper] {
      put(0xffff_ffff, at: at, width: 4, into: \.writable)
    }
    put(0x0fff, at: PCIRegister.bridgeControl, width: 2, into: \.writable)
  }

  private init(_ identity: PCIIdentity, bridge: Bool, pin: PCIInterruptPin?) {
    isBridge = bridge
    put(UInt64(identity.vendorID), at: PCIRegister.vendorID, width: 2)
    put(UInt64(identity.deviceID), at: PCIRegister.deviceID, width: 2)
    bytes[PCIRegister.revisionID] = identity.revisionID
    put(UInt64(identity.classCode), at: PCIRegister.programmingInterface, width: 3)
    bytes[PCIRegister.headerType] = bridge ? 1 : 0
    bytes[PCIRegister.interruptPin] = pin?.rawValue ?? 0
    writable[PCIRegister.interruptLine] = 0xff
    writable[PCIRegister.cacheLineSize] = 0xff
    writable[PCIRegister.latencyTimer] = 0xff
    let command: PCICommand = [
      .ioSpace, .memorySpace, .busMaster, .parityErrorResponse, .systemErrorEnable, .interruptDisable,
    ]
    put(UInt64(command.rawValue), at: PCIRegister.command, width: 2, into: \.writable)
  }

  /// Adds a base address register. A 64-bit one takes two numbers.
  public mutating func add(_ bar: BAR) {
    let count = isBridge ? 2 : 6
    precondition(bar.index >= 0 && bar.index + (bar.kind.isWide ? 2 : 1) <= count, "no such BAR")
    precondition(
      bar.size & (bar.size &- 1) == 0 && bar.size >= (bar.kind.isIO ? 4 : 16), "a BAR's size is a power of two")
    precondition(bar.kind.isWide || bar.size <= 1 << 31, "too large for 32 bits")
    precondition(
      !bars.contains {
        bar.index <= $0.index + ($0.kind.isWide ? 1 : 0) && $0.index <= bar.index + (bar.kind.isWide ? 1 : 0)
      })
    let at = PCIRegister.bar(bar.index)
    put(UInt64(bar.kind.type), at: at, width: 4)
    put(bar.mask, at: at, width: bar.kind.isWide ? 8 : 4, into: \.writable)
    bars.append(bar)
    bars.sort { $0.index < $1.index }
  }

  /// Appends a capability to the list.
  ///
  /// - Parameters:
  ///   - body: what follows its ID and the pointer to the next.
  ///   - mask: the bits of `body` that software may write; missing ones are read-only.
  /// - Returns: where it is.
  @discardableResult
  public mutating func addCapability(_ id: UInt8, _ body: [UInt8], writable mask: [UInt8] = []) -> Int {
    let at = next
    precondition(at + 2 + body.count <= Self.byteCount, "no room for another capability")
    bytes[at] = id
    bytes[at + 1] = 0
    for (i, byte) in body.enumerated() { bytes[at + 2 + i] = byte }
    for (i, byte) in mask.prefix(body.count).enumerated() { writable[at + 2 + i] = byte }
    if let last { bytes[last + 1] = UInt8(at) } else { bytes[PCIRegister.capabilitiesPointer] = UInt8(at) }
    put(UInt64(PCIStatus.capabilitiesList), at: PCIRegister.status, width: 2)
    last = at
    next = (at + 2 + body.count + 3) & ~3
    return at
  }

  /// Appends the MSI-X capability of a table of `count` vectors.
  ///
  /// - Parameters:
  ///   - table: which BAR the table is in, and where: a multiple of 8.
  ///   - pending: the same for the pending bit array.
  @discardableResult
  public mutating func addMSIX(
    count: Int, table: (bar: Int, offset: UInt32), pending: (bar: Int, offset: UInt32)
  ) -> Int {
    precondition(
      msixAt == nil && (1...MSIX.maxVectors).contains(count) && table.offset % 8 == 0 && pending.offset % 8 == 0)
    var body = [UInt8](repeating: 0, count: 10)
    func put(_ value: UInt32, _ at: Int, _ width: Int) {
      for i in 0..<width { body[at + i] = UInt8(truncatingIfNeeded: value >> UInt32(8 * i)) }
    }
    put(UInt32(count - 1), 0, 2)
    put(table.offset | UInt32(table.bar), 2, 4)
    put(pending.offset | UInt32(pending.bar), 6, 4)
    let at = addCapability(PCICapabilityID.msix, body, writable: [0, 0xc0])
    msixAt = at
    return at
  }

  mutating func put(_ value: UInt64, at: Int, width: Int, into which: WritableKeyPath<Self, [UInt8]> = \.bytes) {
    for i in 0..<width { self[keyPath: which][at + i] = UInt8(truncatingIfNeeded: value >> UInt64(8 * i)) }
  }
}
